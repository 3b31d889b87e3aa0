"""The job protocol on S3: below `<remote>/<job>/`.

    bundle.tar.gz            the bundle without weights
    weights/<file>           its safetensors files, only when a device will check the result
    job.json                 written last: what is to be done, SHA-256 and size of every file above
    <phase>/status.json      where the phase stands; names out.tar.gz and its SHA-256 when it is done
    <phase>/log.txt          what the instance has said so far
    <phase>/neff/            NEFFs as they get finished, for the next instance if this one is lost
    <phase>/out.tar.gz       what the phase made

An object of S3 is there whole or not at all, and a multipart upload becomes an object when it is completed. So half an
upload is never seen as a file; its finished parts stay, and the next attempt sends only the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_port.build.finishing.files import sha256_of
from neuron_port.deploy.aws import Aws
from neuron_port.deploy.errors import NOT_FOUND, AwsError, DeployError
from neuron_port.deploy.locations import Location

MIB = 1 << 20
SMALLEST_PART_BYTES = 16 * MIB  # S3 takes 5 MiB and more, and 10,000 parts at most
MOST_PARTS = 9_000


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One file that was brought to S3: what was sent and what lay there already."""

    name: str
    sha256: str
    size_bytes: int
    sent_bytes: int


class JobStore:
    """One job's folder on S3."""

    def __init__(
        self, aws: Aws, remote: Location, job: str, *, smallest_part_bytes: int = SMALLEST_PART_BYTES
    ) -> None:
        self.home = remote.below(job)
        self._remote, self._job = remote, job
        self._aws = aws
        self._smallest_part_bytes = smallest_part_bytes

    # ------------------------------------------------------------------------------------------ small records

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A record, or None when it is not there."""
        try:
            answer = self._call("get_object", f"read {self.home}/{name}", Key=self.home.key(name))
        except AwsError as error:
            if error.code in NOT_FOUND and error.code != "NoSuchBucket":
                return None
            raise
        try:
            value = json.loads(b"".join(self._aws.chunks(answer["Body"], f"read {self.home}/{name}")))
        except ValueError as error:
            raise DeployError(
                f"`{self.home}/{name}` is no JSON: {error}", hint="Remove it and run the same command again."
            ) from error
        return dict(value)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        body = json.dumps(value, indent=2, allow_nan=False).encode()
        self._call("put_object", f"write {self.home}/{name}", Key=self.home.key(name), Body=body)

    def delete(self, name: str) -> None:
        self._call("delete_object", f"delete {self.home}/{name}", Key=self.home.key(name))

    # ----------------------------------------------------------------------------------------------- uploads

    def upload(self, name: str, path: Path, *, said: Callable[[int, int], None] | None = None) -> Upload:
        """Bring a file to S3; an equal one that is there already, or finished parts of one, are not sent again.

        Args:
            said: told (bytes there, bytes in all) after every part.
        """
        size, digest = path.stat().st_size, sha256_of(path)
        if self._has(name, size, digest):
            return Upload(name=name, sha256=digest, size_bytes=size, sent_bytes=0)
        part_bytes = max(self._smallest_part_bytes, -(-size // MOST_PARTS))
        if size <= part_bytes:
            self._call(
                "put_object", f"upload {self.home}/{name}", Key=self.home.key(name), Body=path.read_bytes(),
                Metadata={"sha256": digest},
            )  # fmt: skip
            sent = size
        else:
            sent = self._upload_parts(name, path, digest, part_bytes, said)
        return Upload(name=name, sha256=digest, size_bytes=size, sent_bytes=sent)

    def _has(self, name: str, size: int, digest: str) -> bool:
        try:
            found = self._call("head_object", f"look at {self.home}/{name}", Key=self.home.key(name))
        except AwsError as error:
            if error.code in NOT_FOUND and error.code != "NoSuchBucket":
                return False
            raise
        return bool(found["ContentLength"] == size) and found.get("Metadata", {}).get("sha256") == digest

    def _upload_parts(
        self, name: str, path: Path, digest: str, part_bytes: int, said: Callable[[int, int], None] | None
    ) -> int:
        """Send the parts that are missing and complete the upload; returns the bytes sent."""
        doing, key = f"upload {self.home}/{name}", self.home.key(name)
        upload, there = self._begun(key, doing, digest)
        size, sent, done, parts = path.stat().st_size, 0, 0, []
        with path.open("rb") as file:
            for number in range(1, -(-size // part_bytes) + 1):
                piece = file.read(part_bytes)
                etag = there.get((number, len(piece)))
                # With KMS encryption an ETag is no MD5: then the part is sent again, which is safe.
                if etag != hashlib.md5(piece, usedforsecurity=False).hexdigest():
                    etag = self._call(
                        "upload_part", doing, Key=key, UploadId=upload, PartNumber=number, Body=piece
                    )["ETag"]
                    sent += len(piece)
                parts.append({"PartNumber": number, "ETag": etag})
                done += len(piece)
                if said is not None:
                    said(done, size)
        self._call(
            "complete_multipart_upload", doing, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )
        return sent

    def _begun(self, key: str, doing: str, digest: str) -> tuple[str, dict[tuple[int, int], str]]:
        """An upload of this key that an earlier run began, with its parts (number, size) -> MD5; or a new one."""
        pages = self._aws.pages("s3", "list_multipart_uploads", doing, Bucket=self.home.bucket, Prefix=key)
        begun = [item for page in pages for item in page.get("Uploads", []) if item["Key"] == key]
        if not begun:
            made = self._call("create_multipart_upload", doing, Key=key, Metadata={"sha256": digest})
            return str(made["UploadId"]), {}
        upload = begun[-1]["UploadId"]
        pages = self._aws.pages("s3", "list_parts", doing, Bucket=self.home.bucket, Key=key, UploadId=upload)
        parts = [part for page in pages for part in page.get("Parts", [])]
        return upload, {(part["PartNumber"], part["Size"]): part["ETag"].strip('"') for part in parts}

    # --------------------------------------------------------------------------------------------- downloads

    def download(self, name: str, path: Path, *, sha256: str) -> None:
        """Fetch a file and check it; what is not the file that was meant is not kept.

        Raises: DeployError when its SHA-256 is another.
        """
        aside = path.with_name(f".{path.name}.partial")
        answer = self._call("get_object", f"fetch {self.home}/{name}", Key=self.home.key(name))
        digest = hashlib.sha256()
        try:
            with aside.open("wb") as file:
                for piece in self._aws.chunks(answer["Body"], f"fetch {self.home}/{name}"):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != sha256:
                raise DeployError(
                    f"`{self.home}/{name}` is not what the instance wrote: "
                    f"SHA-256 {digest.hexdigest()[:12]}, expected {sha256[:12]}",
                    hint=f"Run the same command again; if it stays: neuron-port deploy destroy {self._job} --purge "
                    f"--remote {self._remote}, and build again.",
                )
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def text(self, name: str, *, last_bytes: int = 4096) -> str:
        """The end of a text that the instance writes, "" when there is none yet."""
        try:
            found = self._call("get_object", f"read {self.home}/{name}", Key=self.home.key(name))
        except AwsError as error:
            if error.code in NOT_FOUND and error.code != "NoSuchBucket":
                return ""
            raise
        whole = b"".join(self._aws.chunks(found["Body"], f"read {self.home}/{name}"))
        return whole[-last_bytes:].decode(errors="replace")

    def remove_everything(self) -> int:
        """Delete every object and every unfinished upload of the job; returns how many objects there were."""
        doing, prefix = f"delete {self.home}", f"{self.home.prefix}/"
        for page in self._aws.pages(
            "s3", "list_multipart_uploads", doing, Bucket=self.home.bucket, Prefix=prefix
        ):
            for item in page.get("Uploads", []):
                self._call("abort_multipart_upload", doing, Key=item["Key"], UploadId=item["UploadId"])
        pages = self._aws.pages("s3", "list_objects_v2", doing, Bucket=self.home.bucket, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        for key in keys:
            self._call("delete_object", doing, Key=key)
        return len(keys)

    def _call(self, operation: str, doing: str, **parameters: Any) -> dict[str, Any]:
        return self._aws.call("s3", operation, doing, Bucket=self.home.bucket, **parameters)


def check_bucket(aws: Aws, remote: Location) -> None:
    """Stop early when the bucket is missing, is not ours or lies in another region than the instances will.

    Raises: AwsError, DeployError.
    """
    doing = f"use the bucket `{remote.bucket}`"
    try:
        answer = aws.call("s3", "head_bucket", doing, Bucket=remote.bucket)
    except AwsError as error:
        if error.code in NOT_FOUND:
            raise DeployError(
                f"Cannot {doing}: there is no such bucket",
                hint=f"Make it: neuron-port deploy plan storage --remote {remote} -o storage.json, then "
                "neuron-port deploy apply storage.json",
            ) from None
        raise
    region = answer.get("BucketRegion") or answer["ResponseMetadata"]["HTTPHeaders"].get(
        "x-amz-bucket-region"
    )
    if region and region != aws.region:
        raise DeployError(
            f"Cannot {doing}: it is in {region}, and the instances would start in {aws.region}",
            hint=f"Set AWS_REGION={region}, or give a bucket in {aws.region}.",
        )

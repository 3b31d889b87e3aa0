"""A stand-in for the aws command line on an instance: `aws s3 cp [--only-show-errors] [--recursive] FROM TO`.

Talks plain HTTP to AWS_ENDPOINT_URL. FAKE_AWS_REFUSE (a substring of an S3 address) makes writing there fail as S3
does for a role that may not.
"""

import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ENDPOINT = os.environ["AWS_ENDPOINT_URL"]

# moto reads whose key signed, and does not check the signature.
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=testing/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)


def address(location):
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key


def request(method, bucket, key, body=None, query=""):
    url = f"{ENDPOINT}/{bucket}/{urllib.parse.quote(key)}{query}"
    headers = {"Content-Type": "application/octet-stream", "Authorization": SIGNED}
    with urllib.request.urlopen(
        urllib.request.Request(url, data=body, method=method, headers=headers)
    ) as answer:
        return answer.read()


def listed(bucket, prefix):
    text = request("GET", bucket, "", query=f"?list-type=2&prefix={urllib.parse.quote(prefix)}")
    return [node.text for node in ElementTree.fromstring(text).iter() if node.tag.endswith("}Key")]


def copy(source, destination):
    if source.startswith("s3://"):
        path = Path(destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(request("GET", *address(source)))
    else:
        refused = os.environ.get("FAKE_AWS_REFUSE", "")
        if refused and refused in destination:
            sys.exit(
                f"upload failed: {source} to {destination} An error occurred (AccessDenied) when calling PutObject"
            )
        request("PUT", *address(destination), body=Path(source).read_bytes())


def main():
    assert sys.argv[1:3] == ["s3", "cp"], sys.argv
    rest = [part for part in sys.argv[3:] if part != "--only-show-errors"]
    recursive = rest[:1] == ["--recursive"]
    source, destination = rest[-2:]
    try:
        if not recursive:
            return copy(source, destination)
        bucket, prefix = address(source)
        for key in listed(bucket, prefix.rstrip("/") + "/"):
            copy(f"s3://{bucket}/{key}", f"{destination}/{key.removeprefix(prefix).lstrip('/')}")
    except urllib.error.HTTPError as error:
        sys.exit(f"fatal error: An error occurred ({error.code}) when calling {source} -> {destination}")


main()

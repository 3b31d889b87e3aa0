#!/bin/bash
# neuron-port, job @JOB@, phase @PHASE@. The instance ends itself: on success, on failure, and when time is up.
# It was started with InstanceInitiatedShutdownBehavior=terminate, so shutting down is terminating.
set -u
ROOT="${NEURON_PORT_ROOT:-/opt/neuron-port}"
shutdown -P "+@MINUTES@" || { (sleep @SECONDS@; poweroff -f) & }
trap 'shutdown -P now || poweroff -f' EXIT
export HOME="${HOME:-/root}" AWS_DEFAULT_REGION="@REGION@" PATH="$PATH:/usr/local/bin:/snap/bin"
mkdir -p "$ROOT" && cd "$ROOT" || exit 1
cat > runner.py <<'END_OF_RUNNER'
@RUNNER@
END_OF_RUNNER
python3 runner.py --root "$ROOT" --home "@HOME@" --phase "@PHASE@" --attempt "@ATTEMPT@"

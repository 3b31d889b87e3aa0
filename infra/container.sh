#!/bin/sh
# The container's entry: `serve` alone with a model from SageMaker serves that; everything else is neuron-port's.
set -eu
ROOT="${NEURON_PORT_ROOT:-/opt/neuron-port}"
MODEL="${SM_MODEL_DIR:-/opt/ml/model}"
if [ "$#" -eq 1 ] && [ "$1" = serve ] && [ -f "$MODEL/code/inference.py" ]; then
    NEURON_PORT_COMMAND="$ROOT/serve/bin/neuron-port" exec "$ROOT/serve/bin/python" "$MODEL/code/inference.py"
fi
exec "$ROOT/serve/bin/neuron-port" "$@"

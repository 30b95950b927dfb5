#!/bin/bash
# Trains on all workers of a TPU pod; the same command again goes on.
#
#     bash recipes/tpu_pod.sh
#     bash recipes/tpu_pod.sh --config.train.steps=800000    # with fields of the config
#
# Change the names of the TPU and its zone, the config (stages behind a colon), and the
# workdir, on a file system that all workers mount. The project lies in ~/vdiff_jax of
# each of them.
set -euo pipefail

tpu=${TPU:-my-tpu}
zone=${ZONE:-us-central2-b}
config=${CONFIG:-configs/imagenet64.py}
workdir=${WORKDIR:-/shared/imagenet64}

printf -v command '%q ' python launch.py --config "$config" --workdir "$workdir" \
    --distributed "$@"
gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
    --command="cd vdiff_jax && $command"

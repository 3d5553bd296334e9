#!/usr/bin/env bash
# A sweep on SLURM: Ray on every node of the allocation, and the sweep over all of them.
#
#   sbatch --nodes 4 --gpus-per-node 4 --cpus-per-task 32 sweeps/cluster/slurm.sh --dataset folder:photos --out runs
#
# Options of sbatch come before the file, flags of compression-sweep after it. Submit with the environment active. --out
# must lie on a file system that all nodes share, or --storage name one. The sweep takes all cores and GPUs of the job.
#
# A job that is preempted, whose node dies, or that comes to its time limit, is put into the queue again, and goes on
# where it stopped: what is finished is not computed again. `scancel` ends it for good; the same sbatch goes on with it.
#SBATCH --job-name=compression-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -uo pipefail

fail() {
  echo "slurm.sh: $1" >&2
  exit 2
}

[[ -n "${SLURM_JOB_ID-}" ]] || fail "this is a batch script; give it to sbatch."
[[ "${SLURM_NTASKS_PER_NODE-}" == 1 ]] || fail "--ntasks-per-node ${SLURM_NTASKS_PER_NODE-}: Ray is one task a node."
command -v ray >/dev/null && command -v compression-sweep >/dev/null ||
  fail "ray and compression-sweep are not on the PATH; activate their environment before sbatch."

# Whoever may connect to a Ray runs code in it: nodes and driver show a token, new for every start.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
# A node's IPv4 address, in the network in which SLURM's own daemons talk.
ip_of='ip_of() {
  getent ahostsv4 "$(scontrol show node -o "$1" | sed -E "s/.* NodeAddr=([^ ]+) .*/\1/")" | awk "NR == 1 { print \$1 }"
}'
eval "$ip_of"
head_ip=$(ip_of "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")
[[ -n "$head_ip" ]] || fail "the first node of $SLURM_JOB_NODELIST has no IPv4 address."
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node
files=$(mktemp -d /tmp/ray-slurm-XXXXXXXX) || fail "/tmp cannot be written." # a name that nobody can take before

# On every node; the first one is the head, and has trials, too. Ray's own processes end with `srun`.
read -r -d '' on_node <<'NODE' || true
head_ip=$1 port=$2 files=$3 cpus=$4
ulimit -n 65536 2>/dev/null
if [[ "$SLURM_NODEID" == 0 ]]; then
  exec ray start --head --node-ip-address="$head_ip" --port="$port" --temp-dir="$files" --num-cpus="$cpus" \
    --include-dashboard=false --block
fi
for _ in $(seq 60); do
  ray status --address="$head_ip:$port" >/dev/null 2>&1 && break
  sleep 1
done
exec ray start --address="$head_ip:$port" --node-ip-address="$(ip_of "$SLURMD_NODENAME")" --num-cpus="$cpus" --block
NODE

srun --overlap --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "$ip_of
$on_node" ray "$head_ip" "$port" "$files" "$SLURM_CPUS_PER_TASK" \
  >>"ray-$SLURM_JOB_ID.log" 2>&1 &
ray=$!

driver='' again=''
# TERM: preempted, or scancel. SLURM knows which, and puts the first kind into the queue itself.
stop() {
  [[ -z "$driver" ]] || kill -TERM "$driver" 2>/dev/null
}
trap stop TERM
trap 'again=yes; echo "The time limit is near."; stop' USR1

finish() { # code
  kill -TERM "$ray" 2>/dev/null
  wait "$ray" 2>/dev/null
  rm -rf "$files"
  exit "$1"
}

for _ in $(seq 90); do # seconds; the head starts first, and the driver needs no other node
  kill -0 "$ray" 2>/dev/null || break
  ray status --address="$head_ip:$port" >/dev/null 2>&1 && break
  sleep 1
done
kill -0 "$ray" 2>/dev/null || { cat "ray-$SLURM_JOB_ID.log" >&2; echo "slurm.sh: Ray did not start." >&2; finish 1; }

resources=(--cpus $((SLURM_NNODES * SLURM_CPUS_PER_TASK)))
[[ -z "${SLURM_GPUS_ON_NODE-}" ]] || resources+=(--gpus $((SLURM_NNODES * SLURM_GPUS_ON_NODE)))
compression-sweep --address "$head_ip:$port" "${resources[@]}" "$@" &
driver=$!

wait -n "$driver" "$ray" # a trap interrupts it
kill -0 "$ray" 2>/dev/null || stop # without Ray there is nothing to wait for
wait "$driver"
code=$?
while kill -0 "$driver" 2>/dev/null; do # a second signal has interrupted that wait
  wait "$driver"
  code=$?
done
if [[ -n "$again" && "$code" == 143 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
finish "$code"

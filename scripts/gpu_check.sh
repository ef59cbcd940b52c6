#!/usr/bin/env bash
# A first check on a machine with one NVIDIA GPU, in at most 8 minutes and without a network. From the project's root:
#
#   bash scripts/gpu_check.sh FOLDER                   # with the packages that `python3` has
#   bash scripts/gpu_check.sh FOLDER WHEELS            # installs the wheels in WHEELS beside them, for this check alone
#   DEVICE=cpu TINY=1 bash scripts/gpu_check.sh FOLDER # tries the script itself, on a CPU
#
# FOLDER gets summary.txt, logs.tgz, and runs.tgz with the runs' small files. Every part has a time limit, and one that
# fails does not stop the others. Further variables: PYTHON (python3), BUDGET (470 seconds in all), ONLY (a pattern of the
# parts to run, as 'machine|tests'). Exit code: 0 if every part that ran was all right, else 1.
set -u
OUT=${1:?usage: bash scripts/gpu_check.sh FOLDER [WHEELS]}
WHEELS=${2:-}
: "${DEVICE:=cuda}" "${TINY:=}" "${PYTHON:=python3}" "${BUDGET:=470}" "${ONLY:=.}"
WORK=$(mktemp -d)
LOGS=$WORK/logs
RUNS=$WORK/outputs
mkdir -p "$OUT" "$LOGS" "$RUNS"
SUMMARY=$OUT/summary.txt
: >"$SUMMARY"
FAILED=0
export PYTHONUNBUFFERED=1 WANDB_SILENT=true PYTHONPATH=$PWD

say() { printf '%4ds %s\n' "$SECONDS" "$*" | tee -a "$SUMMARY"; }

pack() { # after each part: logs survive whatever happens later
  tar -C "$WORK" -czf "$OUT/logs.tgz" logs
  (cd "$RUNS" && find . -type f ! -name '*.pt' ! -path './wandb/*' -size -2M -print0 | tar --null -T - -czf "$OUT/runs.tgz")
}

finish() {
  pack
  rm -rf "$WORK"
}
trap finish EXIT

part() { # part NAME SECONDS COMMAND...: runs it with a time limit, keeps its log, says how it ended
  local name=$1 limit=$2 left=$((BUDGET - SECONDS)) began=$SECONDS code line
  shift 2
  [[ $name =~ $ONLY ]] || return 0
  [[ -n $TINY ]] && limit=$((3 * limit)) # the CPU may be busy
  if ((left < 15)); then
    say "skip $name: the time is used up"
    return
  fi
  ((limit > left)) && limit=$left
  timeout -k 5 "$limit" "$@" >"$LOGS/$name.log" 2>&1 </dev/null
  code=$?
  line=$(grep -E 'Error|Warning|rror:' "$LOGS/$name.log" | tail -1 | cut -c1-200)
  case $code in
    0) say "ok   $name ($((SECONDS - began)) s)" ;;
    124 | 137) say "FAIL $name: not done after $limit s" ;;
    *) say "FAIL $name: exit code $code ($((SECONDS - began)) s) $line" ;;
  esac
  ((code)) && FAILED=1
  pack
}

if [[ -n $WHEELS ]]; then
  if ! "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$WORK/site" "$WHEELS"/*.whl >"$LOGS/pip.log" 2>&1; then
    say "FAIL the wheels were not installed: $(tail -1 "$LOGS/pip.log")"
    exit 1
  fi
  export PYTHONPATH=$WORK/site:$PYTHONPATH
fi
RUN=("$PYTHON" -m runner "paths.outputs=$RUNS" wandb.mode=disabled)
HERE=("${RUN[@]}" "train.device=$DEVICE")
if [[ -n $TINY ]]; then
  FEW=(train.max_steps=4 model=resnet20)
  BIG=(model=resnet20 dataset.image_size=32 dataset.num_images=64 dataset.num_classes=10 train.global_batch_size=16 train.epochs=1)
  GHOST=4
  METHODS=(--quick --threads 1 --only clip)
  TRAINING=(--quick --threads 1)
else
  FEW=()
  BIG=(model=resnet50 dataset.image_size=224 dataset.num_images=1024 dataset.num_classes=1000 train.global_batch_size=256 train.epochs=10)
  GHOST=32
  METHODS=(--blocks 6 --with-targets)
  TRAINING=(--blocks 3 --steps 8)
fi

# The machine: versions, the GPU, how fast it copies.
part machine 60 "$PYTHON" -c '
import importlib.metadata, platform, sys
import torch
names = ("torch", "torchvision", "triton", "numpy")
print(platform.python_version(), *(f"{name} {importlib.metadata.version(name)}" for name in names))
if sys.argv[1] == "cuda":
    gpu = torch.cuda.get_device_properties(0)
    print(gpu.name, gpu.total_memory >> 20, "MiB, cuDNN", torch.backends.cudnn.version(), "NCCL", torch.cuda.nccl.version())
    x = torch.randn(2**30, device="cuda").bfloat16()
    y, start, end = torch.empty_like(x), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    y.copy_(x), start.record(), [y.copy_(x) for _ in range(5)], end.record(), end.synchronize()
    print("copies", round(10 * x.nbytes / start.elapsed_time(end) / 1e9, 2), "TB/s")
' "$DEVICE"
[[ -f $LOGS/machine.log ]] && say "  $(tr '\n' ' ' <"$LOGS/machine.log" | cut -c1-240)"

# The tests that need a GPU, as `make test-gpu` runs them.
mapfile -t FILES < <(grep -rl --include='*.py' 'mark\.gpu' tests)
part tests 120 "$PYTHON" -m pytest -m gpu -p no:cacheprovider -rfE --durations=5 "${FILES[@]}"
[[ -f $LOGS/tests.log ]] && say "  $(tail -1 "$LOGS/tests.log" | cut -c1-200)"

# The README's commands, the sweep below and the other methods together.
part readme_run 60 "${HERE[@]}" "${FEW[@]}" name=digits
part readme_agc 60 "${HERE[@]}" model=nf_resnet50 norm=agc agc.clip=0.01 train.max_steps=40 "${FEW[@]:0:1}" name=nf_resnet50
part all_methods 60 "${HERE[@]}" train.max_steps=40 "${FEW[@]}" name=all train.ema=0.99 ghost_batchnorm.ghost_batch_size=16 \
  'norm=[ghost_batchnorm,weight_standardization,agc]' 'regularization=[stochastic_depth,label_smoothing,mixup]'

# A run goes on here, one that began on the CPU goes on here, and one that began here goes on on the CPU.
ONE=(model=resnet20 train.max_steps=20 train.epochs=1)
part resumed 40 "${HERE[@]}" "resume=$RUNS/runs/all" train.max_steps=60 train.epochs=9
part cpu_run 40 "${RUN[@]}" train.device=cpu "${ONE[@]}" name=cpu_run
part cpu_run_goes_on 40 "${HERE[@]}" "resume=$RUNS/runs/cpu_run" train.max_steps=40 train.epochs=2
part here_run 40 "${HERE[@]}" "${ONE[@]}" name=here_run
part here_run_goes_on_on_cpu 40 "${RUN[@]}" "resume=$RUNS/runs/here_run" train.device=cpu train.max_steps=40 train.epochs=2

# DistributedDataParallel with one rank: its backends, and gradients that lie in memory as the weights do.
part process_group 60 env RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29517 "$PYTHON" -c '
import sys
import torch
from torch import distributed
from runner.distributed.collectives import all_gather_object, barrier, process_group, wrap_ddp
from runner.models import resnet18
device = torch.device(sys.argv[1])
with process_group(device, timeout=30):
    barrier()
    print(distributed.get_backend(), all_gather_object("an object"))
    model = wrap_ddp(resnet18(num_classes=4).to(device, memory_format=torch.channels_last), device)
    images = torch.randn(4, 3, 64, 64, device=device).to(memory_format=torch.channels_last)
    for _ in range(2):
        model.zero_grad()
        model(images).sum().backward()
    assert all(parameter.grad.stride() == parameter.stride() for parameter in model.parameters())
' "$DEVICE"

# ResNet-50 with each method: images/s and memory, read from summary.json below.
EACH=("${HERE[@]}" dataset=random "${BIG[@]}" train.log_every_steps=10 train.evaluate_every_epochs=10
  train.checkpoint_every_epochs=10 optimizer.lr=1e-3)
part plain 50 "${EACH[@]}" name=plain
part ghost_batchnorm 50 "${EACH[@]}" norm=ghost_batchnorm ghost_batchnorm.ghost_batch_size=$GHOST name=ghost_batchnorm
part weight_standardization 50 "${EACH[@]}" norm=weight_standardization name=weight_standardization
part agc 50 "${EACH[@]}" norm=agc name=agc
part stochastic_depth 50 "${EACH[@]}" regularization=stochastic_depth stochastic_depth.drop_rate=0.5 name=stochastic_depth
part groupnorm 50 "${EACH[@]}" norm=groupnorm groupnorm.num_groups=8 name=groupnorm

# A net that waits for launches, as it is and with a CUDA graph.
SMALL=("${HERE[@]}" dataset=random dataset.num_images=5120 model=resnet20 train.global_batch_size=128 train.epochs=4
  train.log_every_steps=40 train.evaluate_every_epochs=4 train.checkpoint_every_epochs=4 optimizer.lr=1e-3 norm=agc)
if [[ $DEVICE == cuda ]]; then
  part small 40 "${SMALL[@]}" name=small
  part small_cuda_graph 40 "${SMALL[@]}" name=small_cuda_graph train.cuda_graph=true
fi

# Four small jobs, one after the other and at once.
JOBS=("${HERE[@]}" -m seed=0,1,2,3 "${FEW[@]}" train.epochs=2)
part sweep_in_turn 90 "${JOBS[@]}" sweep.name=in_turn
if [[ $DEVICE == cuda ]]; then AT_ONCE=sweep.jobs_per_device=4; else AT_ONCE=sweep.jobs_at_once=2; fi
part sweep_at_once 90 "${JOBS[@]}" sweep.name=at_once "$AT_ONCE"

# What the methods cost as layers, and the training loop beside a bare one.
part bench_methods 110 "$PYTHON" scripts/bench.py methods --device "$DEVICE" "${METHODS[@]}" --json "$RUNS/methods.json"
part bench_train 110 "$PYTHON" scripts/bench.py train --device "$DEVICE" "${TRAINING[@]}" --json "$RUNS/train.json"

"$PYTHON" - "$RUNS" >"$LOGS/table.log" 2>&1 <<'END'
import json, sys
from pathlib import Path

outputs = Path(sys.argv[1])
for name in ("plain", "ghost_batchnorm", "weight_standardization", "agc", "stochastic_depth", "groupnorm", "small", "small_cuda_graph"):
    folder = outputs / "runs" / name
    if not (folder / "summary.json").is_file():
        continue
    throughput = json.loads((folder / "summary.json").read_text())["throughput"]
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    speeds = [(row["step"], row["images_per_second"]) for row in rows if row["split"] == "steps" and row.get("images_per_second")]
    late = ""
    if len(speeds) > 1:  # means since the first step: of the last ten steps alone
        (before, slower), (last, faster) = speeds[-2:]
        late = f", {(last - before) / (last / faster - before / slower):.0f} over the last {last - before} steps"
    memory = throughput.get("peak_memory_gib")
    print(f"{name}: {throughput['images_per_second'] or 0:.0f} images/s{late}" + (f", {memory:.1f} GiB" if memory else ""))
for part in ("methods", "train"):
    if (file := outputs / f"{part}.json").is_file():
        for result in json.loads(file.read_text())["results"]:
            beside = "" if result["beside"] is None else f", {result['beside_what']} {result['beside']:.4g}: {result['value']:.3f}"
            print(f"{result['what']}: {result['ours']:.4g} {result['unit']}{beside}")
END
tee -a "$SUMMARY" <"$LOGS/table.log"
say "done"
exit "$FAILED"

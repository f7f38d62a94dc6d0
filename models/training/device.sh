#!/bin/sh
# usage: device.sh CORPUS TOKENIZER_DIR WORK MINUTES; a short trial of every script, then the training itself,
# which goes on in the background: WORK/train.out says how far it is.
set -e
cd "$(dirname "$0")"
nvidia-smi -L
python3 train.py --corpus "$1" --tokenizer "$2" --work "$3/trial" --steps 60
python3 export.py "$3/trial/weights.safetensors" "$2" "$3/trial/model"
python3 evaluate.py "$3/trial/model" --corpus "$1" --count 4
setsid nohup python3 train.py --corpus "$1" --tokenizer "$2" --work "$3/run" --minutes "$4" > "$3/train.out" 2>&1 &

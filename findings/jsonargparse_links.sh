#!/usr/bin/env bash
# jsonargparse 4.53.0
#
# Behaviour: a value for the target of link_arguments raises an error on the command line, which names
# the source. In a YAML file it is ignored silently.
# One would have guessed: one rule for both.
# Output seen:
#   YAML says net.size 7 and data.size 5: net.size is 5
#   the command line says so: error: Linked "net.size" must be given via "data.size".
source "$(dirname "$0")/venv.sh"
install 'jsonargparse==4.53.0'
run "$folder/config.yaml" <<'PYTHON'
import contextlib
import io
import sys
from pathlib import Path

from jsonargparse import ArgumentParser


class Net:
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Data:
    def __init__(self, size: int = 3) -> None:
        self.size = size


parser = ArgumentParser()
parser.add_argument("--config", action="config")
parser.add_class_arguments(Net, "net")
parser.add_class_arguments(Data, "data")
parser.link_arguments("data.size", "net.size")

file = Path(sys.argv[1])
file.write_text("data: {size: 5}\nnet: {size: 7}\n")
size = parser.parse_args([f"--config={file}"]).net.size
print(f"YAML says net.size 7 and data.size 5: net.size is {size}")
with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()) as errors:
    parser.parse_args(["--data.size=5", "--net.size=7"])
said = errors.getvalue().strip().splitlines()[-1]
print(f"the command line says so: {said}")
sys.exit(size != 5 or said != 'error: Linked "net.size" must be given via "data.size".')
PYTHON

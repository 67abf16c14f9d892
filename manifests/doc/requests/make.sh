#!/bin/sh
# Writes bash/, quoted/ and dash/ again by running the tutorial's commands in each shell.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here}
run() {
    mkdir -p "$target/$1"
    (cd "$target/$1" && "$2" "$here/$3")
}
run bash bash commands.sh
run quoted bash commands-quoted.sh
run dash dash commands.sh

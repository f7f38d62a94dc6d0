#!/bin/sh
# keep_ptxas.sh COMPILER... -o OBJECT - compiles, and keeps what ptxas says of each kernel beside the object
# (OBJECT.ptxas, for tests/cuda/resources.py). What else the compiler says goes through. ccache says again what a
# compiler said to it.
object=
previous=
for argument; do
    [ "$previous" = -o ] && object=$argument
    previous=$argument
done
"$@" 2>"$object.ptxas"
status=$?
sed -e '/^ptxas info/d' -e '/bytes stack frame/d' "$object.ptxas" >&2
exit $status

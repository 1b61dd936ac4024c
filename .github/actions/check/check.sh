#!/usr/bin/env bash
# What the action runs; every setting comes as an environment variable (see action.yml).
set -euo pipefail

out=${OUT:-$(mktemp -d "${RUNNER_TEMP:-/tmp}/edgekd-check.XXXXXX")}
mkdir -p "$out"
rm -f "$out/gate.json"  # an earlier call's verdict must not pass for this one's

arguments=(--margin "$MARGIN" --clock "$CLOCK" --max-minutes "$MAX_MINUTES" --inconclusive "$INCONCLUSIVE")
arguments+=(--out "$out" --annotate)
[ -z "$RUNTIME" ] || arguments+=(--runtime "$RUNTIME")
[ -z "$THREADS" ] || arguments+=(--threads "$THREADS")
[ -z "$PROFILE" ] || arguments+=(--profile "$PROFILE")
[ -z "$BASE_CMD" ] || arguments+=(--base-cmd "$BASE_CMD")
[ -z "$BASELINE" ] || arguments+=(--baseline "$BASELINE")
[ -z "$DATA" ] || arguments+=(--data "$DATA")
while IFS= read -r line; do
  [ -z "$line" ] || arguments+=("$line")
done <<<"$ARGUMENTS"
models=("$CANDIDATE")
[ -z "$BASE" ] || models=("$BASE" "$CANDIDATE")

code=0
"$PYTHON" -m edgekd check "${arguments[@]}" -- "${models[@]}" || code=$?

verdict='' ratio=''
if [ -f "$out/gate.json" ]; then
  read -r verdict ratio < <("$PYTHON" -c '
import json, sys
found = json.load(open(sys.argv[1], encoding="utf-8"))
print(found["verdict"], "" if found["ratio"] is None else found["ratio"])
' "$out/gate.json")
fi
{
  echo "verdict=$verdict"
  echo "ratio=$ratio"
  echo "exit-code=$code"
  echo "out=$out"
} >>"$GITHUB_OUTPUT"

# Only a machine that said so itself is excused: a candidate that crashes ends with 4 as well.
if [ "$code" = 4 ] && [ "$verdict" = ENVIRONMENT ] && [ "$ENVIRONMENT" = warn ]; then
  exit 0
fi
exit "$code"

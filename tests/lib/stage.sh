# stage.sh - runs named stages with a time budget and counts the tests in them. Sourced by quickstart and .ci/run.
#
#   stage_begin_run; stage NAME MINUTES command...; stage_summary
# Each stage's output goes to the terminal and to build/logs/NAME.log. Results are appended to build/logs/stages.tsv
# (name, seconds, budget minutes, exit code, passed, failed), so that .ci/run sums up what quickstart ran.

STAGE_DIR="${STAGE_ROOT:?}/build/logs"
STAGE_TABLE="$STAGE_DIR/stages.tsv"

stage_begin_run() {
    mkdir -p "$STAGE_DIR"
    rm -f "$STAGE_TABLE"
    : > "$STAGE_TABLE"
}

# Counts what ctest, pytest and our own programs print: "N% tests passed, F tests failed out of T" and
# "P passed" / "F failed" on a summary line.
stage_count() {
    awk '
        /tests passed, [0-9]+ tests? failed out of [0-9]+/ {
            match($0, /[0-9]+ tests? failed out of [0-9]+/); split(substr($0, RSTART, RLENGTH), w, " ")
            failed += w[1]; passed += w[6] - w[1]; next
        }
        /^(=+ )?[0-9]+ (passed|failed).* in [0-9.]+s/ || /^[0-9]+ passed, [0-9]+ failed$/ {
            line = $0; gsub(/[=,]/, " ", line); n = split(line, w, " ")
            for (i = 2; i <= n; i++) {
                if (w[i] == "passed") passed += w[i-1]
                if (w[i] == "failed" || w[i] == "error" || w[i] == "errors") failed += w[i-1]
            }
        }
        END { printf "%d\t%d", passed, failed }' "$1"
}

stage() {
    local name="$1" minutes="$2" started rc seconds counts
    shift 2
    printf '\n== %s (budget %s min)\n' "$name" "$minutes"
    started=$(date +%s)
    "$@" 2>&1 | tee "$STAGE_DIR/$name.log"
    rc=${PIPESTATUS[0]}
    seconds=$(( $(date +%s) - started ))
    counts=$(stage_count "$STAGE_DIR/$name.log")
    if [ "$rc" -ne 0 ] && [ "${counts#*$'\t'}" = 0 ]; then
        counts="${counts%$'\t'*}"$'\t1' # a stage that failed without a test that failed is one failure
    fi
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$seconds" "$minutes" "$rc" "$counts" >> "$STAGE_TABLE"
    printf '== %s: exit %s, %d:%02d of %s min\n' "$name" "$rc" $((seconds / 60)) $((seconds % 60)) "$minutes"
    return "$rc"
}

# Prints the table and, last, "N passed, M failed". Returns 1 when anything failed or the total is past $1 minutes.
stage_summary() {
    awk -F '\t' -v limit="$1" '
        { printf "%-14s %3d:%02d of %s min  exit %s  %d passed, %d failed\n", $1, $2/60, $2%60, $3, $4, $5, $6
          total += $2; passed += $5; failed += $6; if ($2 > $3 * 60) over = over " " $1 }
        END {
          printf "total %d:%02d of %d min%s\n", total/60, total%60, limit, over ? "; over their own budget:" over : ""
          if (total > limit * 60) { print "over the limit of " limit " minutes"; failed++ }
          printf "%d passed, %d failed\n", passed, failed
          exit failed > 0
        }' "$STAGE_TABLE"
}

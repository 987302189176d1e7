#!/bin/sh
# One job from submission to download with curl alone: sh examples/submit.sh [SPEC.json [OUTPUT]]
# Needs a running service (make up), and curl and sha256sum.
set -eu

spec=${1:-examples/sinusoid.json}
output=${2:-init.safetensors}
url=${AMAML_URL:-http://127.0.0.1:${AMAML_PORT:-8000}}
key=${AMAML_API_KEY:-$(cat "${AMAML_HOME:-.amaml}/admin.key")}

# Headers are passed by standard input, since every user of the machine can see a command's arguments.
ask() { printf 'Authorization: Bearer %s\n' "$key" | curl --silent --show-error --fail-with-body --header @- "$@"; }
header() { tr -d '\r' <"$head" | sed -n "s/^$1: //Ip"; }

head=$(mktemp)
trap 'rm -f "$head"' EXIT

# The Idempotency-Key makes it safe to send the request again when no answer came.
ask --request POST "$url/v1/jobs" --header 'Content-Type: application/json' --header "Idempotency-Key: $(basename "$head")" \
    --data "@$spec" --dump-header "$head" --output /dev/null
job=$(header location)
echo "submitted: $url$job"

# The stream of events ends by itself when the job has ended.
ask --no-buffer "$url$job/events" --header 'Accept: text/event-stream' | sed -n 's/^data: //p'

ask "$url$job/initialization" --dump-header "$head" --output "$output"
echo "$(header etag | tr -d '"')  $output" | sha256sum --check

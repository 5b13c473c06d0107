#!/bin/bash
# Tells whether the server in this container is ready, loading or dead. Uses bash alone: images for CPUs have no curl.
#
#   healthcheck.sh REST_PORT GRPC_PORT MODEL...     a port of 0 is off
#
# Exit 0: `ready`, every model has a version AVAILABLE. Exit 1: `loading: ...` or `dead: ...`, which `docker inspect`
# shows. The server opens its ports when it has loaded every model, so at first a closed port means loading; a port that
# is closed again, or that is open without an answer, means dead. (A server that has ended ends the container itself.)
set -u
LC_ALL=C # lengths are bytes
readonly rest=$1 grpc=$2 seconds=3
shift 2

read -r -a stat </proc/1/stat
readonly served="/tmp/served.${stat[21]}" # by the start time of PID 1: a container that was restarted loads anew

loading() {
  echo "loading: $1"
  exit 1
}

dead() {
  echo "dead: $1"
  exit 1
}

connect() {
  { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null && return
  [[ -e $served ]] && dead "port $1 is closed, and was open before"
  loading "port $1 is not open yet"
}

ask() { # the status line and the body of GET $1, in $status and $body
  local line length=''
  status='' body=''
  connect "$rest"
  printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1" >&3
  IFS= read -r -t "$seconds" status <&3 || dead "no answer on port $rest within $seconds s"
  while IFS= read -r -t "$seconds" line <&3 && [[ $line != $'\r' ]]; do
    [[ ${line,,} =~ ^content-length:\ *([0-9]+) ]] && length=${BASH_REMATCH[1]}
  done
  IFS= read -r -t "$seconds" ${length:+-N "$length"} -d '' body <&3
  exec 3>&-
}

if ((rest)); then
  for model in "$@"; do
    ask "/v1/models/$model"
    [[ $body =~ \"state\":\ *\"AVAILABLE\" ]] && continue
    [[ $body =~ \"state\":\ *\"(START|LOADING)\" ]] && loading "$model is ${BASH_REMATCH[1]}"
    dead "$model has no version AVAILABLE: ${status%$'\r'}"
  done
else
  connect "$grpc"
  exec 3>&-
fi

{ : >"$served"; } 2>/dev/null
echo ready

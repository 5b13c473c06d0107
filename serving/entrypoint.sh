#!/bin/bash
# PID 1 of the container: runs the server, passes on the signals that end it, and ends as it ends.
#
# The server cannot be PID 1 itself: the kernel drops SIGTERM for a PID 1 without a handler of its own, and
# tensorflow_model_server has none; `docker stop` would wait its ten seconds and kill. Uses bash alone.
set -u

tensorflow_model_server "$@" &
server=$!
trap 'signalled=yes; kill -TERM "$server" 2>/dev/null' TERM INT QUIT HUP

while :; do
  signalled=
  wait "$server"
  status=$?
  [[ $signalled ]] || exit "$status" # a signal ends `wait` too, before the server has ended
done

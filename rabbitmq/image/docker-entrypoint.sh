#!/bin/sh
# Starts RabbitMQ as the rabbitmq user. The server itself reads RABBITMQ_DEFAULT_USER,
# RABBITMQ_DEFAULT_PASS, RABBITMQ_DEFAULT_VHOST and the other RABBITMQ_* variables that the
# official image documents; the cookie also goes to a file so that rabbitmqctl finds it.
set -eu

for removed in RABBITMQ_DEFAULT_PASS_FILE RABBITMQ_DEFAULT_USER_FILE RABBITMQ_VM_MEMORY_HIGH_WATERMARK; do
    if [ -n "$(printenv "$removed" || true)" ]; then
        echo "error: $removed is not supported; use a file in /etc/rabbitmq/conf.d" >&2
        exit 1
    fi
done

if [ -n "${RABBITMQ_ERLANG_COOKIE:-}" ]; then
    umask 077
    printf '%s' "$RABBITMQ_ERLANG_COOKIE" > /var/lib/rabbitmq/.erlang.cookie
    umask 022
fi

if [ "$(id -u)" = 0 ] && [ "${1#rabbitmq}" != "$1" ]; then
    find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq:rabbitmq '{}' +
    # The package's wrapper in /usr/sbin wants root and a system service: use the server's own script.
    if [ "$1" = rabbitmq-server ]; then
        shift
        set -- "$(dpkg -L rabbitmq-server | grep '/lib/rabbitmq_server-[^/]*/sbin/rabbitmq-server$')" "$@"
    fi
    exec gosu rabbitmq "$@"
fi
exec "$@"

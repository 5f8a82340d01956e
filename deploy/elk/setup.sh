#!/bin/bash
# Users of the first start, made again without harm at every other: Kibana's own, and shipper with the rights that
# docs/sinks/elasticsearch.md asks for. Passwords are read from files and never stand on a command line.
set -euo pipefail

call() { # METHOD PATH, the body on standard input
    curl --silent --show-error --fail-with-body --config <(printf 'user = "elastic:%s"\n' "$(cat /run/secrets/elastic)") \
        --request "$1" --header 'Content-Type: application/json' --data-binary @- "$ELASTICSEARCH_URL$2"
    echo
}

# The passwords are hexadecimal digits, as the page makes them, and need no quoting.
printf '{"password": "%s"}' "$(cat /run/secrets/kibana)" | call POST /_security/user/kibana_system/_password

call PUT /_security/role/shipper <<'END'
{
  "cluster": ["monitor", "manage_index_templates", "manage_ilm"],
  "indices": [{
    "names": ["logs-shipper-*"],
    "privileges": ["create_doc", "auto_configure", "read", "view_index_metadata"]
  }]
}
END

printf '{"password": "%s", "roles": ["shipper"]}' "$(cat /run/secrets/elasticsearch)" | call PUT /_security/user/shipper

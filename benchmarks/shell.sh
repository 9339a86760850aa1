#!/usr/bin/env bash
# The same by the tools that an administrator would take: s5cmd, zip -1, curl, OpenSSH's sftp with AES-GCM.
# `shell.sh PREFIX SKU TARGET`, in an empty folder; the settings come from the environment.
set -euo pipefail
prefix=$1 sku=$2 target=$3

stage() { # NAME COMMAND…
    local began=$EPOCHREALTIME
    "${@:2}"
    seconds+=("$(awk -v name="$1" -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "\"%s\": %.4f", name, b - a }')")
}

fetch() {
    AWS_ACCESS_KEY_ID=$S3_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY=$S3_SECRET_ACCESS_KEY AWS_REGION=$S3_REGION \
        s5cmd --log error --endpoint-url "$S3_ENDPOINT_URL" cp "s3://$S3_BUCKET/$prefix*" files/
}

pack() {
    (cd files && zip -1 -q -r ../delivery.zip .)
}

validate() {
    curl -sS --fail -H "$VALIDATOR_API_KEY_HEADER: $VALIDATOR_API_KEY" -F zip_file=@delivery.zip \
        -o answer.json "$VALIDATOR_URL/$sku"
    grep -Eq '"result":"(Valid|Warning)"' answer.json
}

upload() {
    printf '%s\n' "-mkdir $target" "put -r files/. $target/" | sftp -q -b - -P "$SFTP_PORT" -i "$SFTP_KEY_PATH" \
        -o Ciphers=aes128-gcm@openssh.com -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o LogLevel=ERROR "$SFTP_USER@$SFTP_HOST" >/dev/null
}

seconds=()
for name in fetch pack validate upload; do stage "$name" "$name"; done
(IFS=,; echo "{${seconds[*]}}")

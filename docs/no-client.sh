#!/usr/bin/env bash
# Stores a file in Mogile and fetches it again with no client at all: bash's
# /dev/tcp speaks to the tracker, curl to the storage daemons.
#
#   docs/no-client.sh [TRACKER [DOMAIN [FILE]]]      default: 127.0.0.1:7001 test, and this script
set -euo pipefail

tracker=${1:-127.0.0.1:7001} domain=${2:-test} file=${3:-$0}
key="no-client/$(basename "$file")"

# One connection to the tracker, open for the whole script.
exec 3<>"/dev/tcp/${tracker%:*}/${tracker##*:}"

# ask COMMAND ARGS prints the fields of the tracker's answer, one a line.
ask() {
	printf '%s %s\r\n' "$1" "$2" >&3
	local reply
	IFS= read -r -t 30 reply <&3
	reply=${reply%$'\r'}
	case $reply in
	'OK '*) tr '&' '\n' <<<"${reply#OK }" ;;
	*)
		echo "$1: $reply" >&2
		return 1
		;;
	esac
}

# field NAME picks one of those fields and decodes it.
field() {
	local value
	value=$(grep -m 1 "^$1=" | cut -d = -f 2-)
	value=${value//+/ }
	printf '%b' "${value//\%/\\x}"
}

# escape TEXT encodes all but letters, digits and a few marks, byte by byte.
escape() {
	local LC_ALL=C text=$1 i c
	for ((i = 0; i < ${#text}; i++)); do
		c=${text:i:1}
		case $c in
		[a-zA-Z0-9_,./:-]) printf '%s' "$c" ;;
		*) printf '%%%02X' "'$c" ;;
		esac
	done
}

# 1. Where may the bytes go?
opened=$(ask create_open "domain=$(escape "$domain")&key=$(escape "$key")")
fid=$(field fid <<<"$opened") devid=$(field devid <<<"$opened") path=$(field path <<<"$opened")

# 2. Put them there. 201 means that they are on the disk.
curl -sSf -T "$file" "$path"

# 3. Give them their name.
size=$(wc -c <"$file")
ask create_close "domain=$(escape "$domain")&key=$(escape "$key")&fid=$fid&devid=$devid&size=$((size))&path=$(escape "$path")" >/dev/null
echo "stored $file as $key (fid $fid on dev$devid)"

# 4. Ask where they are, and fetch them with an ordinary GET.
paths=$(ask get_paths "domain=$(escape "$domain")&key=$(escape "$key")")
curl -sSf "$(field path1 <<<"$paths")" | cmp - "$file"
echo "fetched $key from $(field path1 <<<"$paths"): the same bytes"

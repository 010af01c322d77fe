#!/usr/bin/env bash
# A cluster as an operator runs it, with the programs' old names, configuration
# files and tools alone: three storage daemons, nginx as the fourth host, two
# trackers on PostgreSQL; a tree of files goes in, is synced, listed, fetched and
# compared while a tracker and a host are killed and started again.
#
# It is given DIR (with bin/, tree/, nginx.conf and usage.sh), PG (host, port and
# database for a DBI:Pg: DSN), PG_USER, PORT and MGMT (of the storage hosts),
# TRACKER1 and TRACKER2 (ports), JOBS (of transfers), and NGINX_PROGRAM (nginx itself reads NGINX).
set -euo pipefail
cd "$DIR"
export PATH="$DIR/bin:$PATH"
export MOGILE_TRACKERS="127.0.0.1:$TRACKER1,127.0.0.1:$TRACKER2" MOGILE_DOMAIN=toast

say() { echo "== $*"; }

# stop PIDFILE [SIGNAL] ends what the file names, and waits for it.
stop() {
	local pid
	pid=$(<"$1")
	kill "-${2:-TERM}" "$pid"
	# Whoever adopted it may take its time to notice.
	while grep -q '^State:[^Z]*$' "/proc/$pid/status" 2>/dev/null; do sleep 0.05; done
	say "$1 has stopped"
}

# until_ok COMMAND… repeats it for a minute at most.
until_ok() {
	for _ in {1..300}; do
		if "$@" >last.out 2>&1; then return; fi
		sleep 0.2
	done
	echo "never succeeded: $*" >&2
	cat last.out >&2
	return 1
}

cleanup() {
	status=$?
	((status == 0)) || cat ./*.conf
	[ -e nginx.pid ] && kill "$(<nginx.pid)" # its workers end with it
	for pidfile in mog*.pid; do
		[ -e "$pidfile" ] && kill -KILL "$(<"$pidfile")" 2>/dev/null
	done
	kill "${usage:-}" 2>/dev/null
	exit "$status"
}
trap cleanup EXIT

say "database"
mogdbsetup --type=Postgres --dbhost="$PG_HOST" --dbport="$PG_PORT" --dbname="$PG_DB" --dbuser="$PG_USER" --yes --verbose

say "trackers"
tracker() {
	cat >"mogilefsd$1.conf" <<-CONF
		# Configuration for MogileFS daemon
		daemonize = 1
		pidfile = $DIR/mogilefsd$1.pid
		db_dsn = DBI:Pg:dbname=$PG_DB;host=$PG_HOST;port=$PG_PORT
		db_user = $PG_USER
		listen = 127.0.0.1:$2
		mogstored_stream_port = $MGMT
		user = root
		query_jobs = 10
		delete_jobs = 1
		replicate_jobs = 5
		reaper_jobs = 1
		max_disk_age = 5
	CONF
	mogilefsd --config="$DIR/mogilefsd$1.conf"
}
tracker 1 "$TRACKER1"
tracker 2 "$TRACKER2"

say "storage hosts"
storage() {
	mkdir -p "mogdata$1/dev$1"
	cat >"mogstored$1.conf" <<-CONF
		maxconns = 10000
		httplisten = 127.0.0.$1:$PORT
		mgmtlisten = 127.0.0.$1:$MGMT
		docroot = $DIR/mogdata$1   # one disk
		daemonize = 1
		pidfile = $DIR/mogstored$1.pid
	CONF
	mogstored --config="$DIR/mogstored$1.conf"
}
for n in 1 2 3; do storage "$n"; done

# The page's script, of which a plain directory has no use for one line.
sed -e "/mountpoint/d" -e "s#/var/mogdata#$DIR/mogdata4#" usage.sh >usage4.sh
(while sh usage4.sh; do sleep 2; done) >usage.out 2>&1 &
usage=$!
"$NGINX_PROGRAM" -p "$DIR" -c "$DIR/nginx.conf" >nginx.out 2>&1

say "what the trackers are told"
for n in 1 2 3 4; do
	mogadm --trackers="$MOGILE_TRACKERS" host add "store$n" --ip="127.0.0.$n" --port="$PORT" --status=alive
	mogadm --trackers="$MOGILE_TRACKERS" device add "store$n" "$n"
done
mogadm --trackers="$MOGILE_TRACKERS" domain add toast
mogadm --trackers="$MOGILE_TRACKERS" class add toast tree --mindevcount=2 --replpolicy='MultipleHosts()' --hashtype=MD5
writeable() { [ "$(mogadm --trackers="127.0.0.1:$1" check | grep -c writeable)" = 4 ]; }
until_ok writeable "$TRACKER1"
until_ok writeable "$TRACKER2"
mogadm --trackers="$MOGILE_TRACKERS" check

files=$(find tree -type f | wc -l)
bytes=$(find tree -type f -printf '%s\n' | awk '{s += $1} END {printf "%d", s}')

say "put, while a tracker and a host are killed and come back"
mogtool --json put -r --jobs "$JOBS" --class tree tree >put.out 2>put.err &
put=$!
stored() { [ "$(grep -c '"action":"put"' put.out)" -gt $((files * $1 / 100)) ]; }
until_ok stored 20
stop mogilefsd2.pid KILL
until_ok stored 40
mogilefsd --config="$DIR/mogilefsd2.conf"
stop mogstored1.pid KILL
sleep 2
mogstored --config="$DIR/mogstored1.conf"
if ! wait "$put"; then
	# What failed in spite of all repetitions goes with the second run.
	cat put.err
	mogtool put -r --class tree tree
fi
tail -n 1 put.out

say "sync finds nothing to do, then what changed"
mogtool --json sync --delete --yes tree mogile:tree | tee sync.out | tail -n 1
grep -q '"files":0' sync.out
echo changed >tree/new
first=$(find tree -type f ! -name new | sort | sed -n 1p)
rm "$first"
mogtool --json sync --delete --yes --checksum tree mogile:tree | tee sync.out | tail -n 1
grep -q '"files":1,' sync.out
grep -q '"deleted":1' sync.out
bytes=$(find tree -type f -printf '%s\n' | awk '{s += $1} END {printf "%d", s}')

say "list"
mogtool ls tree/ | sort >listed
find tree -type f | sort >wanted
cmp listed wanted
mogtool --json du tree/ | tail -n 1 | tee du.out
grep -q "\"bytes\":$bytes\\b" du.out

say "copies reach the policy"
replicated() { [ "$(mogtool --json du tree/ | tail -n 1 | grep -o '"physical_bytes":[0-9]*' | cut -d: -f2)" -ge $((2 * bytes)) ]; }
for _ in {1..20}; do if until_ok replicated; then break; fi; done
replicated
found=$(find mogdata4 -name '*.fid' | wc -l)
say "nginx has $found of the copies"
((found > 0))

say "get, while a tracker and a host are restarted"
mogtool --json get -r --jobs "$JOBS" tree back >get.out 2>get.err &
get=$!
fetched() { [ "$(grep -c '"action":"get"' get.out)" -gt $((files * $1 / 100)) ]; }
until_ok fetched 10
stop mogilefsd1.pid
mogilefsd --config="$DIR/mogilefsd1.conf"
stop mogstored2.pid
mogstored --config="$DIR/mogstored2.conf"
wait "$get" || { cat get.err; exit 1; }
tail -n 1 get.out
diff -r tree back

say "everything stops when told"
for pidfile in mogilefsd1 mogilefsd2 mogstored1 mogstored2 mogstored3; do
	stop "$pidfile.pid"
	[ ! -e "$pidfile.pid" ]
done
say "done"

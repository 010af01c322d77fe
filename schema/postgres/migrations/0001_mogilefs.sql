-- The tables of MogileFS 2.73, schema version 17. {{fid}} is BIGINT, or INT
-- where the database has a table file with such a column.
--
-- A step runs where its condition is true. Conditions look at the catalogs
-- only, so that they can be asked before the steps above them have run.

-- step: create table domain
-- needed: to_regclass('domain') IS NULL
CREATE TABLE domain (
	dmid SMALLINT NOT NULL PRIMARY KEY,
	namespace VARCHAR(255) UNIQUE
);

-- step: create table class
-- needed: to_regclass('class') IS NULL
CREATE TABLE class (
	dmid SMALLINT NOT NULL,
	classid SMALLINT NOT NULL,
	PRIMARY KEY (dmid, classid),
	classname VARCHAR(50),
	UNIQUE (dmid, classname),
	mindevcount SMALLINT NOT NULL,
	hashtype SMALLINT,
	replpolicy VARCHAR(255)
);

-- step: create table file
-- needed: to_regclass('file') IS NULL
CREATE TABLE file (
	fid {{fid}} NOT NULL PRIMARY KEY,
	dmid SMALLINT NOT NULL,
	dkey VARCHAR(255),
	UNIQUE (dmid, dkey),
	length BIGINT CHECK (length >= 0),
	classid SMALLINT NOT NULL,
	devcount SMALLINT NOT NULL
);
CREATE INDEX file_devcount ON file (dmid, classid, devcount);
CREATE INDEX file_dmid_dkey_c ON file (dmid, dkey COLLATE "C");

-- step: create table tempfile
-- needed: to_regclass('tempfile') IS NULL
CREATE TABLE tempfile (
	fid BIGSERIAL NOT NULL PRIMARY KEY,
	createtime INT NOT NULL,
	classid SMALLINT NOT NULL,
	dmid SMALLINT NOT NULL,
	dkey VARCHAR(255),
	devids VARCHAR(60)
);

-- step: create table file_on
-- needed: to_regclass('file_on') IS NULL
CREATE TABLE file_on (
	fid {{fid}} NOT NULL,
	devid SMALLINT NOT NULL,
	PRIMARY KEY (fid, devid)
);
CREATE INDEX file_on_devid ON file_on (devid);
CREATE INDEX file_on_devid_fid ON file_on (devid, fid);

-- step: create table file_on_corrupt
-- needed: to_regclass('file_on_corrupt') IS NULL
CREATE TABLE file_on_corrupt (
	fid {{fid}} NOT NULL,
	devid SMALLINT NOT NULL,
	PRIMARY KEY (fid, devid)
);

-- step: create table checksum
-- needed: to_regclass('checksum') IS NULL
CREATE TABLE checksum (
	fid {{fid}} NOT NULL PRIMARY KEY,
	hashtype SMALLINT NOT NULL,
	checksum BYTEA NOT NULL
);

-- step: create table unreachable_fids
-- needed: to_regclass('unreachable_fids') IS NULL
CREATE TABLE unreachable_fids (
	fid {{fid}} NOT NULL PRIMARY KEY,
	lastupdate INT NOT NULL
);
CREATE INDEX unreachable_fids_lastupdate ON unreachable_fids (lastupdate);

-- step: create table host
-- needed: to_regclass('host') IS NULL
CREATE TABLE host (
	hostid SMALLINT NOT NULL PRIMARY KEY CHECK (hostid >= 0),
	status VARCHAR(8) CONSTRAINT status CHECK (status IN ('alive', 'dead', 'down', 'readonly')),
	http_port INT DEFAULT 7500 CHECK (http_port >= 0 AND http_port < 65536),
	http_get_port INT CHECK (http_get_port >= 0 AND http_get_port < 65536),
	hostname VARCHAR(40) UNIQUE,
	hostip VARCHAR(15) UNIQUE,
	altip VARCHAR(15) UNIQUE,
	altmask VARCHAR(18)
);

-- step: create table device
-- needed: to_regclass('device') IS NULL
CREATE TABLE device (
	devid SMALLINT NOT NULL PRIMARY KEY CHECK (devid >= 0),
	hostid SMALLINT NOT NULL,
	status VARCHAR(8) CHECK (status IN ('alive', 'dead', 'down', 'readonly', 'drain')),
	weight INT DEFAULT 100,
	mb_total INT CHECK (mb_total >= 0),
	mb_used INT CHECK (mb_used >= 0),
	mb_asof INT CHECK (mb_asof >= 0)
);
CREATE INDEX device_status ON device (status);

-- step: create table file_to_replicate
-- needed: to_regclass('file_to_replicate') IS NULL
CREATE TABLE file_to_replicate (
	fid {{fid}} NOT NULL PRIMARY KEY,
	nexttry INT NOT NULL,
	fromdevid INT,
	failcount SMALLINT NOT NULL DEFAULT 0,
	flags SMALLINT NOT NULL DEFAULT 0
);
CREATE INDEX file_to_replicate_nexttry ON file_to_replicate (nexttry);

-- step: create table file_to_delete2
-- needed: to_regclass('file_to_delete2') IS NULL
CREATE TABLE file_to_delete2 (
	fid {{fid}} NOT NULL PRIMARY KEY,
	nexttry INT NOT NULL,
	failcount SMALLINT NOT NULL DEFAULT 0
);
CREATE INDEX file_to_delete2_nexttry ON file_to_delete2 (nexttry);

-- step: create table file_to_delete
-- needed: to_regclass('file_to_delete') IS NULL
CREATE TABLE file_to_delete (
	fid {{fid}} NOT NULL PRIMARY KEY
);

-- step: create table file_to_delete_later
-- needed: to_regclass('file_to_delete_later') IS NULL
CREATE TABLE file_to_delete_later (
	fid {{fid}} NOT NULL PRIMARY KEY,
	delafter INT NOT NULL
);
CREATE INDEX file_to_delete_later_delafter ON file_to_delete_later (delafter);

-- step: create table file_to_queue
-- needed: to_regclass('file_to_queue') IS NULL
CREATE TABLE file_to_queue (
	fid {{fid}} NOT NULL,
	devid INT,
	type SMALLINT NOT NULL,
	nexttry INT NOT NULL,
	failcount SMALLINT NOT NULL DEFAULT 0,
	flags SMALLINT NOT NULL DEFAULT 0,
	arg TEXT,
	PRIMARY KEY (fid, type)
);
CREATE INDEX type_nexttry ON file_to_queue (type, nexttry);

-- step: create table fsck_log
-- needed: to_regclass('fsck_log') IS NULL
CREATE TABLE fsck_log (
	logid SERIAL NOT NULL PRIMARY KEY,
	utime INT NOT NULL,
	fid {{fid}},
	evcode CHAR(4),
	devid SMALLINT
);
CREATE INDEX fsck_log_utime ON fsck_log (utime);

-- step: create table server_settings
-- needed: to_regclass('server_settings') IS NULL
CREATE TABLE server_settings (
	field VARCHAR(50) NOT NULL PRIMARY KEY,
	value TEXT
);

-- step: create table lock
-- needed: to_regclass('lock') IS NULL
CREATE TABLE lock (
	lockid INT NOT NULL PRIMARY KEY CHECK (lockid >= 0),
	hostname VARCHAR(255) NOT NULL,
	pid INT NOT NULL CHECK (pid >= 0),
	acquiredat INT NOT NULL CHECK (acquiredat >= 0)
);

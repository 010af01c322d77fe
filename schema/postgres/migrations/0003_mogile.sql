-- Mogile's own tables, which MogileFS's trackers do not look at.

-- step: create table mogile_meta
-- needed: to_regclass('mogile_meta') IS NULL
CREATE TABLE mogile_meta (
	name VARCHAR(50) NOT NULL PRIMARY KEY, -- version: of these tables; origin: the server that fids came from
	value TEXT
);

-- step: create table mogile_fid_block
-- needed: to_regclass('mogile_fid_block') IS NULL
CREATE TABLE mogile_fid_block (
	slot SMALLINT NOT NULL PRIMARY KEY,
	top BIGINT NOT NULL -- the highest fid that was issued through this slot
) WITH (fillfactor = 20);

-- step: create table mogile_lease
-- needed: to_regclass('mogile_lease') IS NULL
CREATE TABLE mogile_lease (
	name VARCHAR(255) NOT NULL PRIMARY KEY,
	owner VARCHAR(255) NOT NULL,
	until_ms BIGINT NOT NULL -- milliseconds since 1970
);

-- step: create table mogile_tracker
-- needed: to_regclass('mogile_tracker') IS NULL
CREATE TABLE mogile_tracker (
	name VARCHAR(255) NOT NULL PRIMARY KEY,
	address TEXT NOT NULL,
	version TEXT NOT NULL,
	lastseen BIGINT NOT NULL
);

-- step: create table copy_to_delete
-- needed: to_regclass('copy_to_delete') IS NULL
CREATE TABLE copy_to_delete (
	fid BIGINT NOT NULL,
	devid INT NOT NULL,
	what VARCHAR(20) NOT NULL,
	nexttry INT NOT NULL,
	failcount SMALLINT NOT NULL DEFAULT 0,
	flags SMALLINT NOT NULL DEFAULT 0,
	PRIMARY KEY (fid, devid, what)
);
CREATE INDEX copy_to_delete_nexttry ON copy_to_delete (nexttry);

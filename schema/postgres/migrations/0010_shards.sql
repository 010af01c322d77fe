-- Files that are kept in shards.

-- step: create table ec
-- needed: to_regclass('ec') IS NULL
CREATE TABLE ec (
	fid BIGINT NOT NULL PRIMARY KEY,
	k SMALLINT NOT NULL,
	m SMALLINT NOT NULL,
	block INT NOT NULL, -- bytes of the file that stand together in a shard
	encoding BIGINT NOT NULL, -- random, also in the header of each shard
	epoch INT NOT NULL, -- of devids: higher after each change
	devids TEXT NOT NULL -- k+m, in the order of the shards, joined by commas; that a shard is there says file_on
);

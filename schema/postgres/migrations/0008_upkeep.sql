-- What walks over all files share among trackers.

-- step: create table mogile_range
-- needed: to_regclass('mogile_range') IS NULL
CREATE TABLE mogile_range (
	sweep VARCHAR(20) NOT NULL,
	first_fid BIGINT NOT NULL,
	last_fid BIGINT NOT NULL,
	files INT NOT NULL, -- file rows in it when it was claimed first
	until_ms BIGINT NOT NULL, -- when the lease ends, in milliseconds since 1970; negative: given back
	PRIMARY KEY (sweep, first_fid)
);

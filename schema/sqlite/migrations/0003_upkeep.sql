-- What walks over all files share among workers. until_ms is when the lease
-- ends, in milliseconds since 1970; negative: given back.
--
-- The files of a device are listed in the order of their fids, which the index
-- file_on_devid has: file_on is WITHOUT ROWID. Where MogileFS made it, another
-- index is made.
CREATE TABLE mogile_range (
    sweep     TEXT NOT NULL,
    first_fid BIGINT NOT NULL,
    last_fid  BIGINT NOT NULL,
    files     INT NOT NULL,
    until_ms  BIGINT NOT NULL,
    PRIMARY KEY (sweep, first_fid)
) WITHOUT ROWID;

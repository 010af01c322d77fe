-- Mogile's own tables, which MogileFS ignores.

-- Single copies whose bytes must go.
CREATE TABLE copy_to_delete (
    fid       BIGINT NOT NULL,
    devid     SMALLINT NOT NULL,
    what      TEXT NOT NULL,
    nexttry   INT NOT NULL,
    failcount SMALLINT NOT NULL DEFAULT 0,
    PRIMARY KEY (fid, devid, what)
) WITHOUT ROWID;
CREATE INDEX copy_to_delete_nexttry ON copy_to_delete (nexttry);

-- Trackers that registered.
CREATE TABLE mogile_tracker (
    name     TEXT NOT NULL PRIMARY KEY,
    address  TEXT NOT NULL,
    version  TEXT NOT NULL,
    lastseen INT NOT NULL
) WITHOUT ROWID;

-- What must run once, and who runs it.
CREATE TABLE mogile_lease (
    name    TEXT NOT NULL PRIMARY KEY,
    owner   TEXT NOT NULL,
    expires INT NOT NULL
) WITHOUT ROWID;

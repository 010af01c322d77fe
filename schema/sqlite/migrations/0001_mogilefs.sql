-- The tables of MogileFS 2.73, schema version 17. Those of a database that
-- MogileFS made are left as they are.

CREATE TABLE IF NOT EXISTS domain (
    dmid      SMALLINT NOT NULL PRIMARY KEY,
    namespace VARCHAR(255) UNIQUE CHECK (length(namespace) <= 255)
);

CREATE TABLE IF NOT EXISTS class (
    dmid        SMALLINT NOT NULL,
    classid     SMALLINT NOT NULL,
    classname   VARCHAR(50) CHECK (length(classname) <= 50),
    mindevcount SMALLINT NOT NULL,
    hashtype    SMALLINT,
    replpolicy  VARCHAR(255) CHECK (length(replpolicy) <= 255),
    PRIMARY KEY (dmid, classid),
    UNIQUE (dmid, classname)
);

CREATE TABLE IF NOT EXISTS file (
    fid      INTEGER NOT NULL PRIMARY KEY,
    dmid     SMALLINT NOT NULL,
    dkey     VARCHAR(255),
    length   BIGINT CHECK (length >= 0),
    classid  SMALLINT NOT NULL,
    devcount SMALLINT NOT NULL,
    UNIQUE (dmid, dkey)
);
CREATE INDEX IF NOT EXISTS file_devcount ON file (dmid, classid, devcount);

-- AUTOINCREMENT: a fid is never issued twice, even after its row has gone.
CREATE TABLE IF NOT EXISTS tempfile (
    fid        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    createtime INT NOT NULL,
    classid    SMALLINT NOT NULL,
    dmid       SMALLINT NOT NULL,
    dkey       VARCHAR(255),
    devids     VARCHAR(60)
);

CREATE TABLE IF NOT EXISTS file_on (
    fid   BIGINT NOT NULL,
    devid SMALLINT NOT NULL,
    PRIMARY KEY (fid, devid)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS file_on_devid ON file_on (devid);

CREATE TABLE IF NOT EXISTS checksum (
    fid      INTEGER NOT NULL PRIMARY KEY,
    hashtype SMALLINT NOT NULL,
    checksum BLOB NOT NULL
);

CREATE TABLE IF NOT EXISTS file_on_corrupt (
    fid   BIGINT NOT NULL,
    devid SMALLINT NOT NULL,
    PRIMARY KEY (fid, devid)
);

CREATE TABLE IF NOT EXISTS unreachable_fids (
    fid        INTEGER NOT NULL PRIMARY KEY,
    lastupdate INT NOT NULL
);
CREATE INDEX IF NOT EXISTS unreachable_fids_lastupdate ON unreachable_fids (lastupdate);

CREATE TABLE IF NOT EXISTS host (
    hostid        SMALLINT NOT NULL PRIMARY KEY CHECK (hostid >= 0),
    status        VARCHAR(8) CHECK (status IN ('alive', 'dead', 'down', 'readonly')),
    http_port     INT DEFAULT 7500 CHECK (http_port BETWEEN 0 AND 65535),
    http_get_port INT CHECK (http_get_port BETWEEN 0 AND 65535),
    hostname      VARCHAR(40) UNIQUE CHECK (length(hostname) <= 40),
    hostip        VARCHAR(45) UNIQUE CHECK (length(hostip) <= 45),
    altip         VARCHAR(45) UNIQUE CHECK (length(altip) <= 45),
    altmask       VARCHAR(49) CHECK (length(altmask) <= 49)
);

CREATE TABLE IF NOT EXISTS device (
    devid    SMALLINT NOT NULL PRIMARY KEY CHECK (devid >= 0),
    hostid   SMALLINT NOT NULL,
    status   VARCHAR(8) CHECK (status IN ('alive', 'dead', 'down', 'readonly', 'drain')),
    weight   INT DEFAULT 100,
    mb_total INT CHECK (mb_total >= 0),
    mb_used  INT CHECK (mb_used >= 0),
    mb_asof  INT CHECK (mb_asof >= 0)
);
CREATE INDEX IF NOT EXISTS device_status ON device (status);

CREATE TABLE IF NOT EXISTS file_to_replicate (
    fid       INTEGER NOT NULL PRIMARY KEY,
    nexttry   INT NOT NULL,
    fromdevid INT,
    failcount SMALLINT NOT NULL DEFAULT 0,
    flags     SMALLINT NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS file_to_replicate_nexttry ON file_to_replicate (nexttry);

CREATE TABLE IF NOT EXISTS file_to_delete2 (
    fid       INTEGER NOT NULL PRIMARY KEY,
    nexttry   INT NOT NULL,
    failcount SMALLINT NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS file_to_delete2_nexttry ON file_to_delete2 (nexttry);

CREATE TABLE IF NOT EXISTS file_to_delete (
    fid INTEGER NOT NULL PRIMARY KEY
);

CREATE TABLE IF NOT EXISTS file_to_delete_later (
    fid      INTEGER NOT NULL PRIMARY KEY,
    delafter INT NOT NULL
);
CREATE INDEX IF NOT EXISTS file_to_delete_later_delafter ON file_to_delete_later (delafter);

-- type 1 is fsck, 2 rebalance.
CREATE TABLE IF NOT EXISTS file_to_queue (
    fid       BIGINT NOT NULL,
    type      SMALLINT NOT NULL,
    devid     INT,
    nexttry   INT NOT NULL,
    failcount SMALLINT NOT NULL DEFAULT 0,
    flags     SMALLINT NOT NULL DEFAULT 0,
    arg       TEXT,
    PRIMARY KEY (fid, type)
);
CREATE INDEX IF NOT EXISTS type_nexttry ON file_to_queue (type, nexttry);

CREATE TABLE IF NOT EXISTS fsck_log (
    logid  INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    utime  INT NOT NULL,
    fid    BIGINT,
    evcode CHAR(4),
    devid  SMALLINT
);
CREATE INDEX IF NOT EXISTS fsck_log_utime ON fsck_log (utime);

CREATE TABLE IF NOT EXISTS server_settings (
    field VARCHAR(50) NOT NULL PRIMARY KEY CHECK (length(field) <= 50),
    value TEXT
);

-- Unused since MogileFS 2.65.
CREATE TABLE IF NOT EXISTS lock (
    lockid     INT NOT NULL PRIMARY KEY CHECK (lockid >= 0),
    hostname   VARCHAR(255) NOT NULL,
    pid        INT NOT NULL CHECK (pid >= 0),
    acquiredat INT NOT NULL CHECK (acquiredat >= 0)
);

-- Gives a tempfile table that was made without it AUTOINCREMENT.
ALTER TABLE tempfile RENAME TO tempfile_before;
CREATE TABLE tempfile (
    fid        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    createtime INT NOT NULL,
    classid    SMALLINT NOT NULL,
    dmid       SMALLINT NOT NULL,
    dkey       VARCHAR(255),
    devids     VARCHAR(60)
);
INSERT INTO tempfile (fid, createtime, classid, dmid, dkey, devids)
    SELECT fid, createtime, classid, dmid, dkey, devids FROM tempfile_before;
DROP TABLE tempfile_before;

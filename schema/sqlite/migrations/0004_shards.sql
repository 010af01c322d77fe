-- Files that are kept in shards. encoding is random, and in the header of each
-- shard as well; block is how many bytes of the file stand together in a shard;
-- devids are k+m, in the order of the shards, joined by commas, as of epoch. That a
-- shard is there says file_on.
CREATE TABLE ec (
    fid      INTEGER NOT NULL PRIMARY KEY,
    k        SMALLINT NOT NULL,
    m        SMALLINT NOT NULL,
    block    INT NOT NULL,
    encoding BIGINT NOT NULL,
    epoch    INT NOT NULL,
    devids   TEXT NOT NULL
);

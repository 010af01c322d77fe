-- Keys are listed in byte order whatever the database's collation.
-- concurrently: each statement in a transaction of its own; tables stay usable

-- step: drop the index file_dmid_dkey_c, which an interrupted migration left unfinished
-- needed: EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('file_dmid_dkey_c') AND NOT indisvalid)
DROP INDEX CONCURRENTLY file_dmid_dkey_c;

-- step: create index file_dmid_dkey_c on file (dmid, dkey COLLATE "C"), concurrently
-- needed: to_regclass('file') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('file_dmid_dkey_c') AND indisvalid)
CREATE INDEX CONCURRENTLY file_dmid_dkey_c ON file (dmid, dkey COLLATE "C");

-- Old databases have fids of 32 bits. To widen them rewrites their tables while
-- nobody can use them, so it is done on demand only. All or none: it is one
-- transaction.

-- step: make file_on.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_on') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file_on ALTER COLUMN fid TYPE BIGINT;

-- step: make file_on_corrupt.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_on_corrupt') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file_on_corrupt ALTER COLUMN fid TYPE BIGINT;

-- step: make checksum.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('checksum') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE checksum ALTER COLUMN fid TYPE BIGINT;

-- step: make unreachable_fids.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('unreachable_fids') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE unreachable_fids ALTER COLUMN fid TYPE BIGINT;

-- step: make file_to_replicate.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_to_replicate') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file_to_replicate ALTER COLUMN fid TYPE BIGINT;

-- step: make file_to_delete.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_to_delete') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file_to_delete ALTER COLUMN fid TYPE BIGINT;

-- step: make file_to_delete2.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_to_delete2') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file_to_delete2 ALTER COLUMN fid TYPE BIGINT;

-- step: make file_to_delete_later.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_to_delete_later') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file_to_delete_later ALTER COLUMN fid TYPE BIGINT;

-- step: make file_to_queue.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_to_queue') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file_to_queue ALTER COLUMN fid TYPE BIGINT;

-- step: make fsck_log.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('fsck_log') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE fsck_log ALTER COLUMN fid TYPE BIGINT;

-- step: make file.fid BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file') AND attname = 'fid' AND atttypid = 'integer'::regtype)
ALTER TABLE file ALTER COLUMN fid TYPE BIGINT;

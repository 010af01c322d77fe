-- MogileFS makes tempfile.fid a 32-bit column even where all others have 64
-- bits, so that automatic fids end at 2147483647.

-- step: make tempfile.fid and its sequence BIGINT
-- needed: EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('tempfile') AND attname = 'fid' AND atttypid <> 'bigint'::regtype) OR EXISTS (SELECT FROM pg_sequence WHERE seqrelid = to_regclass('tempfile_fid_seq') AND seqtypid <> 'bigint'::regtype)
ALTER TABLE tempfile ALTER COLUMN fid TYPE BIGINT;
ALTER SEQUENCE tempfile_fid_seq AS BIGINT;

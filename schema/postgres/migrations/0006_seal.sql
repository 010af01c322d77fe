-- Only on sealed databases: what MogileFS's trackers would not understand.
-- None of this rewrites a table.

-- step: let keys have 1,024 bytes
-- needed: NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file') AND attname = 'dkey' AND atttypmod >= 1028) OR NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('tempfile') AND attname = 'dkey' AND atttypmod >= 1028)
ALTER TABLE file ALTER COLUMN dkey TYPE VARCHAR(1024);
ALTER TABLE tempfile ALTER COLUMN dkey TYPE VARCHAR(1024);

-- step: let hosts have IPv6 addresses
-- needed: NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('host') AND attname = 'hostip' AND atttypmod >= 49)
ALTER TABLE host ALTER COLUMN hostip TYPE VARCHAR(45), ALTER COLUMN altip TYPE VARCHAR(45), ALTER COLUMN altmask TYPE VARCHAR(49);

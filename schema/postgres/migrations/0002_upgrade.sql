-- What MogileFS's own upgrades up to version 17 would have done. Databases as
-- old as version 5 are brought forward.

-- step: add column host.http_get_port
-- needed: to_regclass('host') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('host') AND attname = 'http_get_port' AND NOT attisdropped)
ALTER TABLE host ADD COLUMN http_get_port INT CHECK (http_get_port >= 0 AND http_get_port < 65536);

-- step: add column host.altip
-- needed: to_regclass('host') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('host') AND attname = 'altip' AND NOT attisdropped)
ALTER TABLE host ADD COLUMN altip VARCHAR(15) UNIQUE;

-- step: add column host.altmask
-- needed: to_regclass('host') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('host') AND attname = 'altmask' AND NOT attisdropped)
ALTER TABLE host ADD COLUMN altmask VARCHAR(18);

-- step: add column device.weight
-- needed: to_regclass('device') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('device') AND attname = 'weight' AND NOT attisdropped)
ALTER TABLE device ADD COLUMN weight INT DEFAULT 100;

-- step: add column device.mb_asof
-- needed: to_regclass('device') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('device') AND attname = 'mb_asof' AND NOT attisdropped)
ALTER TABLE device ADD COLUMN mb_asof INT CHECK (mb_asof >= 0);

-- step: add column class.replpolicy
-- needed: to_regclass('class') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('class') AND attname = 'replpolicy' AND NOT attisdropped)
ALTER TABLE class ADD COLUMN replpolicy VARCHAR(255);

-- step: add column class.hashtype
-- needed: to_regclass('class') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('class') AND attname = 'hashtype' AND NOT attisdropped)
ALTER TABLE class ADD COLUMN hashtype SMALLINT;

-- step: add column file_to_queue.arg
-- needed: to_regclass('file_to_queue') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('file_to_queue') AND attname = 'arg' AND NOT attisdropped)
ALTER TABLE file_to_queue ADD COLUMN arg TEXT;

-- step: make server_settings.value TEXT
-- needed: to_regclass('server_settings') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('server_settings') AND attname = 'value' AND NOT attisdropped AND atttypid = 'text'::regtype)
ALTER TABLE server_settings ALTER COLUMN value TYPE TEXT;

-- step: permit the states alive, dead, down, readonly of a host
-- needed: to_regclass('host') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass('host') AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%status%' AND pg_get_constraintdef(oid) LIKE '%readonly%')
DO $$
DECLARE name text;
BEGIN
	FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = to_regclass('host') AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%status%' LOOP
		EXECUTE format('ALTER TABLE host DROP CONSTRAINT %I', name);
	END LOOP;
END $$;
ALTER TABLE host ALTER COLUMN status TYPE VARCHAR(8), ADD CONSTRAINT status CHECK (status IN ('alive', 'dead', 'down', 'readonly'));

-- step: permit the states alive, dead, down, readonly, drain of a device
-- needed: to_regclass('device') IS NOT NULL AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass('device') AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%status%' AND pg_get_constraintdef(oid) LIKE '%readonly%' AND pg_get_constraintdef(oid) LIKE '%drain%')
DO $$
DECLARE name text;
BEGIN
	FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = to_regclass('device') AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%status%' LOOP
		EXECUTE format('ALTER TABLE device DROP CONSTRAINT %I', name);
	END LOOP;
END $$;
ALTER TABLE device ALTER COLUMN status TYPE VARCHAR(8), ADD CONSTRAINT device_status_check CHECK (status IN ('alive', 'dead', 'down', 'readonly', 'drain'));

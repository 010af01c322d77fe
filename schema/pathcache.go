package schema

import (
	"strconv"
	"time"
)

// SettingPathCacheTTL is the setting that says, in whole seconds, how old a
// path may be that a tracker answers from its memory. Stores read it wherever
// they queue the deletion of bytes that such a path may still name.
const SettingPathCacheTTL = "path_cache_ttl"

const (
	// MaxPathCacheTTL is the highest ttl; higher ones mean it. For as long
	// deleted bytes stay on the devices.
	MaxPathCacheTTL = time.Hour
	// PathCacheMargin is how much longer than the ttl deleted bytes stay: for
	// trackers that have not seen a change of the setting yet, for a statement
	// that took its time, and for a client to open what it was told.
	PathCacheMargin = 10 * time.Second
)

// PathCacheTTL reads a value of [SettingPathCacheTTL]: 1 to 9 digits, not above
// [MaxPathCacheTTL]. Anything else is 0, which turns the cache off.
func PathCacheTTL(value string) time.Duration {
	if value == "" || len(value) > 9 {
		return 0
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, MaxPathCacheTTL)
}

// DeletionDelay is how long bytes must stay that a path in the memory of any
// tracker may name, where [SettingPathCacheTTL] has the value.
func DeletionDelay(value string) time.Duration {
	if ttl := PathCacheTTL(value); ttl > 0 {
		return ttl + PathCacheMargin
	}
	return 0
}

package protocol

// Error is a refusal that the client should hear, sent as "ERR Code Text".
// Codes are MogileFS's own, and clients switch on them.
type Error struct {
	Code string // letters, digits and "_"
	Text string // for people; empty means the code's fixed text
}

// Error is "code: text", or the code alone where the text says no more.
func (e *Error) Error() string {
	if t := e.Message(); t != e.Code {
		return e.Code + ": " + t
	}
	return e.Code
}

// Message is the text as it is sent: Text, else the code's fixed text, else the
// code itself.
func (e *Error) Message() string {
	if e.Text != "" {
		return e.Text
	}
	if t, ok := texts[e.Code]; ok {
		return t
	}
	return e.Code
}

// Is reports whether target is an [Error] of the same code, whatever its text.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Err is the refusal code with its fixed text.
func Err(code string) *Error { return &Error{Code: code} }

// ErrReplicationTimeout is the answer to a close with wait=replicated whose file
// is stored, and queued for replication, but was not replicated in time.
var ErrReplicationTimeout = Err("replication_timeout")

// Refusals that several packages test for.
var (
	ErrUnknownKey     = Err("unknown_key")      // no closed file has this key
	ErrKeyExists      = Err("key_exists")       // rename onto a key that is in use
	ErrNoneMatch      = Err("none_match")       // list_keys: the end of the listing
	ErrNoTempfile     = Err("no_temp_file")     // the upload was closed before, or never opened
	ErrFIDInUse       = Err("fid_in_use")       // create_open with a fid that is known
	ErrInvalidKey     = Err("invalid_key")      // a key that the database cannot hold
	ErrFIDMismatch    = Err("fid_mismatch")     // if_fid: the key names another file, or none
	ErrDup            = Err("dup")              // a name, number or address is taken
	ErrUnknownCommand = Err("unknown_command")  // no such command
	ErrFailure        = Err("failure")          // an internal error; the log has the reason
	ErrDomainExists   = Err("domain_exists")    // create_domain of a known domain
	ErrDomainNotFound = Err("domain_not_found") // administration of an unknown domain
	ErrDomainHasFiles = Err("domain_has_files") // delete_domain while files remain
	ErrClassExists    = Err("class_exists")     // create_class of a known class
	ErrClassNotFound  = Err("class_not_found")  // administration of an unknown class
	ErrClassHasFiles  = Err("class_has_files")  // delete_class while files remain
	ErrHostExists     = Err("host_exists")      // create_host of a known host
	ErrHostNotFound   = Err("host_not_found")   // update_host of an unknown host
	ErrUnknownHost    = Err("unknown_host")     // delete_host and create_device with an unknown host
	ErrHostNotEmpty   = Err("host_not_empty")   // delete_host while devices remain
	ErrExistingDevID  = Err("existing_devid")   // create_device of a known device
	ErrNoDevice       = Err("no_device")        // an unknown device
)

// texts are the fixed texts of MogileFS 2.73. The text of a code that is not
// here is the code itself.
var texts = map[string]string{
	"after_mismatch":        "Pattern does not match the after-value?",
	"bad_params":            "Invalid parameters to command; please see documentation",
	"class_exists":          "That class already exists in that domain",
	"class_has_files":       "Class still has files, unable to delete",
	"class_not_found":       "Class not found",
	"db":                    "Database error",
	"domain_exists":         "That domain already exists",
	"domain_has_files":      "Domain still has files, unable to delete",
	"domain_not_empty":      "Domain still has classes, unable to delete",
	"domain_not_found":      "Domain not found",
	"dup":                   "Duplicate name/number used.",
	"failure":               "Operation failed",
	"fid_mismatch":          "The key names another file",
	"host_exists":           "That host already exists",
	"host_mismatch":         "The device specified doesn't belong to the host specified",
	"host_not_empty":        "Unable to delete host; it contains devices still",
	"host_not_found":        "Host not found",
	"invalid_checker_level": "Checker level invalid.  Please see documentation on this command.",
	"invalid_mindevcount":   "The mindevcount must be at least 1",
	"key_exists":            "Target key name already exists; can't overwrite.",
	"no_class":              "No class provided",
	"no_devices":            "No devices found to store file",
	"no_device":             "Device not found",
	"no_domain":             "No domain provided",
	"no_host":               "No host provided",
	"no_ip":                 "IP required to create host",
	"no_port":               "Port required to create host",
	"no_temp_file":          "No tempfile or file already closed",
	"none_match":            "No keys match that pattern and after-value (if any).",
	"nodel_default_class":   "Cannot delete the default class",
	"no_rebal_policy":       "No rebalance policy available",
	"no_rebal_state":        "No available rebalance status",
	"plugin_aborted":        "Action aborted by plugin",
	"rebal_not_started":     "Rebalance not running",
	"replication_timeout":   "The file is stored, and queued for replication",
	"state_too_high":        "Status cannot go from dead to alive; must use down",
	"unknown_command":       "Unknown server command",
	"unknown_host":          "Host not found",
	"unknown_state":         "Invalid/unknown state",
	"unreg_domain":          "Domain name invalid/not found",
}

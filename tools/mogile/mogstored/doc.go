// Package mogstored reads the command lines and configuration files of
// MogileFS's storage daemons, mogstored 2.73 and cmogstored 1.2, so that what
// starts them starts Mogile's in their place. It says what they ask for, and
// does none of it.
//
// The two differ: mogstored's file overrides its command line and has a default
// place, cmogstored's command line overrides its file. Beside their keys the
// flags of mogile storaged that they do not have are understood by their own
// names, in files and on command lines.
package mogstored

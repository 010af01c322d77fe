package volume

import "os"

// osDir is a directory of the operating system.
type osDir struct{ *os.File }

func (d osDir) Next(n int) ([]string, error) { return d.Readdirnames(n) }

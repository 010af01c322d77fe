package storaged

// orderKinds are the orders that this daemon takes.
func (d *Daemon) orderKinds() []order {
	return []order{}
}

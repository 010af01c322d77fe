package storaged

import "github.com/mogile/mogile/protocol"

// orderKinds are the orders that this daemon takes.
func (d *Daemon) orderKinds() []order {
	return []order{
		{verb: protocol.VerbList, run: d.inventory.list},
		{verb: protocol.VerbTrash, run: d.inventory.trash},
	}
}

package storaged

import (
	"context"
	"errors"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/transfer"
)

// orderKinds are the orders that this daemon takes.
func (d *Daemon) orderKinds() []order {
	return []order{
		{verb: protocol.VerbCopy, run: d.copy},
		{verb: protocol.VerbList, run: d.inventory.list},
		{verb: protocol.VerbTrash, run: d.inventory.trash},
		{verb: protocol.VerbEncode, word: protocol.WordEC, run: d.encode},
		{verb: protocol.VerbRebuild, word: protocol.WordEC, run: d.rebuild},
		{verb: protocol.VerbPlace, word: protocol.WordEC, run: d.place},
		{verb: protocol.VerbShardState, word: protocol.WordEC, run: d.shardState},
		{verb: protocol.VerbDrop, word: protocol.WordEC, run: d.drop},
		{verb: protocol.VerbPeers, word: protocol.WordEC, run: d.takePeers},
		{verb: protocol.VerbSuspects, word: protocol.WordEC, run: d.tellSuspects},
	}
}

// copy fetches a file from another storage daemon.
func (d *Daemon) copy(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	c, err := protocol.ParseCopyOrder(o.Args)
	if err != nil {
		return nil, err
	}
	report, err := d.transfers.Copy(ctx, c, to.progress)
	if e, ok := errors.AsType[*transfer.Error](err); ok {
		return e.Fields(), e
	}
	return report.Args(), nil
}

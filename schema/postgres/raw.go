package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Rows that are read by the ten thousand a second are taken apart here: Scan looks
// for a way from the column's type to the variable's for each value anew. The
// binary formats are those of PostgreSQL's send functions: integers are big-endian
// in the column's width, text is its bytes, and of an array see [rawDevices].

// isRaw reports whether all columns of rows but those of text come in binary: not
// where statements are sent as text, as some poolers need it.
func isRaw(rows pgx.Rows) bool {
	for _, f := range rows.FieldDescriptions() {
		if f.Format != pgx.BinaryFormatCode && !isText(f.DataTypeOID) {
			return false
		}
	}
	return true
}

// isText reports whether a type's binary and text formats are the same: text and
// varchar.
func isText(oid uint32) bool { return oid == textOID || oid == 1043 }

var errRaw = errors.New("the server's answer has a form that is not known")

// rawInt is an integer of any width; 0 where it is null.
func rawInt(b []byte) (int64, error) {
	switch len(b) {
	case 0:
		return 0, nil
	case 2:
		return int64(int16(binary.BigEndian.Uint16(b))), nil
	case 4:
		return int64(int32(binary.BigEndian.Uint32(b))), nil
	case 8:
		return int64(binary.BigEndian.Uint64(b)), nil
	}
	return 0, fmt.Errorf("%w: an integer of %d bytes", errRaw, len(b))
}

// rawDevices are the elements of an array of integers. It has a number of
// dimensions, 0 where it is empty, a flag, the type of its elements, then the
// length of each dimension and its first index, and then the elements, each after
// its length.
func rawDevices(b []byte) ([]protocol.DevID, error) {
	if len(b) < 12 {
		return nil, fmt.Errorf("%w: an array of %d bytes", errRaw, len(b))
	}
	dimensions := binary.BigEndian.Uint32(b)
	if b = b[12:]; dimensions == 0 {
		return []protocol.DevID{}, nil
	}
	if dimensions != 1 || len(b) < 8 {
		return nil, fmt.Errorf("%w: an array of %d dimensions", errRaw, dimensions)
	}
	n := int(binary.BigEndian.Uint32(b))
	if b = b[8:]; n > len(b)/4 {
		return nil, fmt.Errorf("%w: an array of %d elements in %d bytes", errRaw, n, len(b))
	}
	devs := make([]protocol.DevID, n)
	for i := range devs {
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: an array that ends early", errRaw)
		}
		size := int(int32(binary.BigEndian.Uint32(b)))
		if b = b[4:]; size < 0 || size > len(b) {
			return nil, fmt.Errorf("%w: an element of %d bytes", errRaw, size)
		}
		dev, err := rawInt(b[:size])
		if err != nil {
			return nil, err
		}
		devs[i], b = protocol.DevID(dev), b[size:]
	}
	return devs, nil
}

// eachFile calls found with the files of rows, each of which has a number and
// fileColumns.
func eachFile(rows pgx.Rows, found func(at int, f schema.LocatedFile)) error {
	defer rows.Close()
	raw := isRaw(rows)
	for rows.Next() {
		var at int64
		var f schema.LocatedFile
		var err error
		if raw {
			at, f, err = rawFile(rows.RawValues())
		} else {
			var r fileRow
			if err = rows.Scan(append([]any{&at}, r.fields()...)...); err == nil {
				f = schema.LocatedFile{File: r.file(), Devices: r.devices()}
			}
		}
		if err != nil {
			return err
		}
		found(int(at), f)
	}
	return rows.Err()
}

// rawTexts are the values of rows of one column of text, of which there are at
// most limit.
func rawTexts(rows pgx.Rows, limit int) ([]string, error) {
	defer rows.Close()
	texts := make([]string, 0, min(limit, 1000))
	for rows.Next() {
		values := rows.RawValues()
		if len(values) != 1 {
			return nil, fmt.Errorf("%w: %d columns", errRaw, len(values))
		}
		texts = append(texts, string(values[0]))
	}
	return texts, rows.Err()
}

// rawFile reads a row of eachFile.
func rawFile(values [][]byte) (at int64, f schema.LocatedFile, err error) {
	if len(values) < 8 {
		return 0, f, fmt.Errorf("%w: %d columns", errRaw, len(values))
	}
	var n [8]int64
	for _, i := range [...]int{0, 1, 2, 4, 5, 6} {
		if n[i], err = rawInt(values[i]); err != nil {
			return 0, f, err
		}
	}
	f.File = schema.File{
		FID: protocol.FID(n[1]), DMID: schema.DMID(n[2]), Key: string(values[3]), Length: n[4], ClassID: schema.ClassID(n[5]), DevCount: int(n[6]),
	}
	f.Devices, err = rawDevices(values[7])
	return n[0], f, err
}

package postgres

import (
	"encoding/binary"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Statements of the hot path have arrays for parameters, which pgx encodes element
// by element, each in an interface of its own. Here they are written in one go.

// OIDs of pg_type, the same in every database.
const (
	int2OID, int8OID, textOID                = 21, 20, 25
	int2ArrayOID, int8ArrayOID, textArrayOID = 1005, 1016, 1009
)

// registerArrays has a connection encode slices quickly.
func registerArrays(conn *pgx.Conn) {
	m := conn.TypeMap()
	for _, oid := range []uint32{int2ArrayOID, int8ArrayOID, textArrayOID} {
		if t, ok := m.TypeForOID(oid); ok {
			m.RegisterType(&pgtype.Type{Name: t.Name, OID: oid, Codec: arrayCodec{t.Codec}})
		}
	}
}

// arrayCodec encodes []int16, []int64 and []string by itself, and leaves all else
// to another codec.
type arrayCodec struct{ pgtype.Codec }

// PlanEncode implements [pgtype.Codec].
func (c arrayCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if format == pgx.BinaryFormatCode {
		switch value.(type) {
		case []int16:
			if oid == int2ArrayOID {
				return arrayPlan{}
			}
		case []int64:
			if oid == int8ArrayOID {
				return arrayPlan{}
			}
		case []string:
			if oid == textArrayOID {
				return arrayPlan{}
			}
		}
	}
	return c.Codec.PlanEncode(m, oid, format, value)
}

// arrayPlan writes arrays as array_recv of PostgreSQL reads them: see [rawDevices].
type arrayPlan struct{}

// Encode implements [pgtype.EncodePlan]: nil slices are null.
func (arrayPlan) Encode(value any, buf []byte) ([]byte, error) {
	switch list := value.(type) {
	case []int16:
		if list == nil {
			return nil, nil
		}
		buf = arrayHead(buf, int2OID, len(list))
		for _, n := range list {
			buf = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(buf, 2), uint16(n))
		}
	case []int64:
		if list == nil {
			return nil, nil
		}
		buf = arrayHead(buf, int8OID, len(list))
		for _, n := range list {
			buf = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(buf, 8), uint64(n))
		}
	case []string:
		if list == nil {
			return nil, nil
		}
		buf = arrayHead(buf, textOID, len(list))
		for _, s := range list {
			buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(s))), s...)
		}
	}
	return buf, nil
}

func arrayHead(buf []byte, element uint32, n int) []byte {
	dimensions := uint32(1)
	if n == 0 {
		dimensions = 0
	}
	buf = binary.BigEndian.AppendUint32(buf, dimensions)
	buf = binary.BigEndian.AppendUint32(buf, 0) // there are no nulls
	buf = binary.BigEndian.AppendUint32(buf, element)
	if n > 0 {
		buf = binary.BigEndian.AppendUint32(buf, uint32(n))
		buf = binary.BigEndian.AppendUint32(buf, 1) // the first index
	}
	return buf
}

package valid_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"sort"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

// Data that a config may have fits into a call, whatever it is made of.
func TestDataFitsIntoACall(t *testing.T) {
	const longestCall = 128 << 10
	for name, list := range map[string]func(n int) any{
		"truths":  func(n int) any { return make([]bool, n) },
		"bytes":   func(n int) any { return make([]byte, n) },
		"numbers": func(n int) any { return make([]uint16, n) },
		"texts":   func(n int) any { return slices.Repeat([]string{"x"}, n) },
		"entries": func(n int) any {
			return map[string]any{"list": slices.Repeat([]any{true}, n)}
		},
	} {
		n := sort.Search(1<<17, func(n int) bool {
			return errors.Is(valid.Data(map[string]any{"x": list(n + 1)}), valid.ErrTooLarge)
		})
		if n < 1000 || n > 1<<16 {
			t.Errorf("%d %s are the most", n, name)
		}
		if size := wireSize(t, list(n)); size > longestCall-1000 {
			t.Errorf("%d %s take %d bytes in a message", n, name, size)
		}
	}
}

func wireSize(t *testing.T, value any) int {
	t.Helper()
	if m, ok := value.(map[string]any); ok {
		var list []godbus.Variant
		for _, v := range m["list"].([]any) {
			list = append(list, godbus.MakeVariant(v))
		}
		value = map[string]godbus.Variant{"list": godbus.MakeVariant(list)}
	}
	var b bytes.Buffer
	m := &godbus.Message{
		Type: godbus.TypeSignal, Body: []any{map[string]godbus.Variant{"data": godbus.MakeVariant(value)}},
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldPath:      godbus.MakeVariant(godbus.ObjectPath("/x")),
			godbus.FieldInterface: godbus.MakeVariant("x.y"),
			godbus.FieldMember:    godbus.MakeVariant("Z"),
			godbus.FieldSignature: godbus.MakeVariant(godbus.ParseSignatureMust("a{sv}")),
		},
	}
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	return b.Len()
}

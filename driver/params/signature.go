package params

import (
	"reflect"
	"strings"
)

// signatureOf is the D-Bus type of a variant's value, for messages: clients
// in any language know their types by these letters, not by Go's.
func signatureOf(v any) string {
	if fields, ok := v.([]any); ok { // how a D-Bus struct arrives
		var b strings.Builder
		for _, f := range fields {
			b.WriteString(signatureOf(f))
		}
		return "(" + b.String() + ")"
	}
	if v == nil {
		return "nothing"
	}
	return typeSignature(reflect.TypeOf(v))
}

func typeSignature(t reflect.Type) string {
	// The bus library's own types, by name so that this package stays free of
	// it.
	switch t.Name() {
	case "ObjectPath":
		return "o"
	case "Signature":
		return "g"
	case "UnixFD", "UnixFDIndex":
		return "h"
	case "Variant":
		return "v"
	}
	kind := t.Kind()
	if kind == reflect.Slice || kind == reflect.Array {
		return "a" + typeSignature(t.Elem())
	}
	if kind == reflect.Map {
		return "a{" + typeSignature(t.Key()) + typeSignature(t.Elem()) + "}"
	}
	letters := map[reflect.Kind]string{
		reflect.String: "s", reflect.Bool: "b", reflect.Uint8: "y", reflect.Int16: "n", reflect.Uint16: "q", reflect.Int32: "i",
		reflect.Uint32: "u", reflect.Int64: "x", reflect.Uint64: "t", reflect.Float64: "d", reflect.Interface: "v",
	}
	if letter, ok := letters[kind]; ok {
		return letter
	}
	return kind.String()
}

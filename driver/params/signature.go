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
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return "a" + typeSignature(t.Elem())
	case reflect.Map:
		return "a{" + typeSignature(t.Key()) + typeSignature(t.Elem()) + "}"
	}
	return basicSignature(t.Kind())
}

func basicSignature(kind reflect.Kind) string {
	switch kind {
	case reflect.String:
		return "s"
	case reflect.Bool:
		return "b"
	case reflect.Uint8:
		return "y"
	case reflect.Int16:
		return "n"
	case reflect.Uint16:
		return "q"
	case reflect.Int32:
		return "i"
	case reflect.Uint32:
		return "u"
	case reflect.Int64:
		return "x"
	case reflect.Uint64:
		return "t"
	case reflect.Float64:
		return "d"
	case reflect.Interface:
		return "v"
	}
	return kind.String()
}

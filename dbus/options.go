package dbus

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/driver"
)

type dict = map[string]godbus.Variant

// The arguments of a request; invoke has checked the signature.
func (r *request) text(i int) string {
	switch v := r.body[i].(type) {
	case string:
		return v
	case godbus.ObjectPath:
		return string(v)
	}
	return ""
}

func (r *request) options(i int) *options {
	given, _ := r.body[i].(dict)
	return &options{left: maps.Clone(given)}
}

// noOptions is for methods that know no option yet.
func (r *request) noOptions(i int) error { return r.options(i).done() }

// options reads a dictionary. Each getter takes a key out; done then answers
// for keys of the wrong type and keys that nobody asked for, all at once.
type options struct {
	left  dict
	wrong []string
}

// option takes a key that shall hold a T. found is false where it is absent
// or wrong.
func option[T any](o *options, key string) (value T, found bool) {
	v, given := o.left[key]
	if !given {
		return value, false
	}
	delete(o.left, key)
	value, found = v.Value().(T)
	if !found {
		o.wrong = append(o.wrong, fmt.Sprintf("option %q has type %s, not %s", key, v.Signature(), godbus.SignatureOf(value)))
	}
	return value, found
}

func (o *options) done() error {
	problems := o.wrong
	for _, key := range slices.Sorted(maps.Keys(o.left)) {
		problems = append(problems, fmt.Sprintf("option %q is unknown", key))
	}
	if len(problems) == 0 {
		return nil
	}
	const most = 10
	if more := len(problems) - most; more > 0 {
		problems = append(problems[:most], fmt.Sprintf("and %d more", more))
	}
	return driver.Errorf(driver.KindInvalidParameter, "%s", strings.Join(problems, ", "))
}

// fromDict takes the variants out of a dictionary, also of those inside.
func fromDict(d dict) map[string]any {
	out := make(map[string]any, len(d))
	for key, v := range d {
		out[key] = fromVariant(v)
	}
	return out
}

// structure is a D-Bus struct, which godbus decodes like an array of variants.
// Nothing that is kept or read from a dictionary holds one.
type structure []any

func fromVariant(v godbus.Variant) any {
	if fields, ok := v.Value().([]any); ok {
		return structure(fields)
	}
	switch inner := v.Value().(type) {
	case dict:
		return fromDict(inner)
	case []godbus.Variant:
		out := make([]any, len(inner))
		for i, e := range inner {
			out[i] = fromVariant(e)
		}
		return out
	case godbus.Variant:
		return fromVariant(inner)
	default:
		return inner
	}
}

func toDict(d map[string]any) dict {
	out := make(dict, len(d))
	for key, v := range d {
		out[key] = toVariant(v)
	}
	return out
}

func toVariant(v any) godbus.Variant {
	switch inner := v.(type) {
	case map[string]any:
		return godbus.MakeVariant(toDict(inner))
	case []any:
		out := make([]godbus.Variant, len(inner))
		for i, e := range inner {
			out[i] = toVariant(e)
		}
		return godbus.MakeVariant(out)
	}
	return godbus.MakeVariant(v)
}

package driver

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// Data is what a provider keeps with a config: D-Bus values as Go values, of
// the types string, bool, byte, the sized integers from 16 bits, float64,
// slices of those, []any and map[string]any. Every program of the owner's uid
// can read it.
type Data map[string]any

const (
	maxDataDepth   = 8
	maxDataEntries = 1024
)

// check refuses other types, and strings that must not reach logs and files.
func (d Data) check() error {
	entries := 0
	return checkValue("data", map[string]any(d), 0, &entries)
}

func checkValue(where string, value any, depth int, entries *int) error {
	if *entries++; *entries > maxDataEntries {
		return Errorf(KindLimitExceeded, "data has more than %d entries", maxDataEntries)
	}
	if depth > maxDataDepth {
		return Errorf(KindInvalidParameter, "%s is nested more than %d deep", where, maxDataDepth)
	}
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if err := checkText("key in "+where, key); err != nil {
				return err
			}
			if err := checkValue(fmt.Sprintf("%s[%q]", where, key), v[key], depth+1, entries); err != nil {
				return err
			}
		}
		return nil
	case []any:
		return checkEach(where, v, depth, entries)
	case []string:
		return checkEach(where, v, depth, entries)
	case string:
		return checkText("value of "+where, v)
	}
	return checkScalar(where, reflect.TypeOf(value))
}

func checkEach[T any](where string, values []T, depth int, entries *int) error {
	for i, v := range values {
		if err := checkValue(fmt.Sprintf("%s[%d]", where, i), v, depth+1, entries); err != nil {
			return err
		}
	}
	return nil
}

func checkScalar(where string, t reflect.Type) error {
	scalar := t
	if t != nil && t.Kind() == reflect.Slice {
		scalar = t.Elem()
	}
	switch scalar {
	case reflect.TypeFor[bool](), reflect.TypeFor[byte](), reflect.TypeFor[int16](), reflect.TypeFor[uint16](),
		reflect.TypeFor[int32](), reflect.TypeFor[uint32](), reflect.TypeFor[int64](), reflect.TypeFor[uint64](),
		reflect.TypeFor[float64]():
		return nil
	}
	return Errorf(KindInvalidParameter, "%s has a type that a config cannot keep", where)
}

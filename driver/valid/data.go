package valid

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

const (
	maxDataDepth = 8
	maxDataBytes = 64 << 10 // keys and values
)

// ErrTooLarge is what Data says of data that is right but too much.
var ErrTooLarge = errors.New("data is too large")

// Data refuses what a config cannot keep. It may hold D-Bus values as Go values:
// string, bool, byte, the sized integers from 16 bits, float64, slices of those,
// []any and map[string]any.
func Data(data map[string]any) error {
	left := maxDataBytes
	return checkValue("data", data, 0, &left)
}

// checkValue takes what the value needs from left.
func checkValue(where string, value any, depth int, left *int) error {
	if *left -= sizeOf(value); *left < 0 {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, maxDataBytes)
	}
	if depth > maxDataDepth {
		return fmt.Errorf("%s is nested more than %d deep", where, maxDataDepth)
	}
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if err := Text("key in "+where, key); err != nil {
				return err
			}
			*left -= len(key)
			if err := checkValue(fmt.Sprintf("%s[%q]", where, key), v[key], depth+1, left); err != nil {
				return err
			}
		}
		return nil
	case []any:
		return checkEach(where, v, depth, left)
	case []string:
		return checkEach(where, v, depth, left)
	case string:
		return Text("value of "+where, v)
	}
	return checkScalar(where, reflect.TypeOf(value))
}

func checkEach[T any](where string, values []T, depth int, left *int) error {
	for i, v := range values {
		if err := checkValue(fmt.Sprintf("%s[%d]", where, i), v, depth+1, left); err != nil {
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
	return fmt.Errorf("%s has a type that a config cannot keep", where)
}

// sizeOf is about what a value needs by itself, in bytes; what a container
// holds is counted when its turn comes.
func sizeOf(value any) int {
	const container = 8
	switch v := value.(type) {
	case string:
		return container + len(v)
	case map[string]any, []any, []string, nil:
		return container
	}
	t := reflect.TypeOf(value)
	if t.Kind() == reflect.Slice {
		return container + int(t.Elem().Size())*reflect.ValueOf(value).Len()
	}
	return int(t.Size())
}

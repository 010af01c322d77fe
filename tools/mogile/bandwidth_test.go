package mogile

import "testing"

func TestBytesPerSecond(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"": 0, "0": 0, "65536": 65536, "500K": 500 << 10, "20M": 20 << 20, "1g": 1 << 30, "2T": 2 << 40,
		"x": -1, "M": -1, "-1": -1, "1.5M": -1, "20MB": -1, "9999999999T": -1, "10 M": -1,
	} {
		got, err := bytesPerSecond(text)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q is %d, want %d", text, got, want)
		}
	}
}

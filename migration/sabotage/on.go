//go:build sabotage

package sabotage

import "os"

// Built says whether this build can be sabotaged.
const Built = true

var chosen = Rule(os.Getenv(Env))

// On says whether rule r is switched off.
func On(r Rule) bool { return chosen == r }

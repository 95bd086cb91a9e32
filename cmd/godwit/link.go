package main

import (
	"github.com/spf13/cobra"
)

// linkWord says what state a cable is in.
func linkWord(up bool) string {
	if up {
		return "link up"
	}
	return "link down"
}

func newLink() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{
		Use:   "link ID up|down",
		Short: "Plug the cable of a network card in, or pull it",
		Long: `Plug the cable of a guest's network card in, or pull it: the guest's driver is told, and its tap has carrier or has none.
"godwit info" lists the cards. The state of the cable moves with the guest.`,
		Example: `  godwit link --name web net0 down
  godwit link --api-sock vm.sock net0 up`,
		Args: cobra.ExactArgs(2),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			up := args[1] == "up"
			if !up && args[1] != "down" {
				return usage("link %.40q: say up or down", args[1])
			}
			c, err := t.client(cmd.Context())
			if err != nil {
				return err
			}
			return c.SetLink(cmd.Context(), args[0], up)
		}),
	}
	t.add(cmd.Flags())
	return cmd
}

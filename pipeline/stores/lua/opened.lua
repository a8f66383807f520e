-- Only in a stream that the holder has opened in this incarnation. KEYS[3]: books. Else entries may lie behind the position that
-- were never read, and whoever goes by it would skip or trim them.
if redis.call('HGET', KEYS[3], 'opened') ~= incarnation(KEYS[3]) then
  return redis.error_reply('REOPEN Redis was started again, or another one took over')
end
